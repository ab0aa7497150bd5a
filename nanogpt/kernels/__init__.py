"""Faster implementations of the models' parts, swapped into a built model from outside.

``install(model)`` replaces modules that have a faster equivalent. None of them has parameters, so
weights and checkpoints are not affected. On an accelerator, or under ``torch.compile``, the
elementwise ones fall back to the plain modules, which the compiler fuses better.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from nanogpt.kernels.attention import FusedAttention
from nanogpt.kernels.dropout import FastDropout
from nanogpt.kernels.elementwise import ComplexRotary, FastSquaredReLU
from nanogpt.models.gpt import Attention
from nanogpt.models.modern import Rotary, SquaredReLU

REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.Dropout: lambda dropout: FastDropout(dropout.p),
    Attention: lambda attention: FusedAttention(attention.dropout.p),
    SquaredReLU: lambda _: FastSquaredReLU(),
    Rotary: lambda _: ComplexRotary(),
}
Module = TypeVar("Module", bound=nn.Module)


def install(model: Module) -> Module:
    """Replace the modules of a model that have a faster equivalent, in place; return the model."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in REPLACEMENTS:
                replacement = REPLACEMENTS[type(child)](child)
                parent.register_module(name, replacement.train(child.training))
    return model
