"""Faster implementations of the models' parts, swapped into a built model from outside.

``install(model)`` replaces modules that have a faster equivalent. None of them has parameters, so
weights and checkpoints are not affected. On an accelerator, or under ``torch.compile``, dropout,
tiled attention and the elementwise functions fall back to PyTorch's operators.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from nanogpt.kernels.attention import FusedAttention
from nanogpt.kernels.dropout import FastDropout
from nanogpt.kernels.elementwise import ComplexRotary, FastSquaredReLU
from nanogpt.models.gpt import Attention
from nanogpt.models.modern import Rotary, SquaredReLU

Replacements = dict[type[nn.Module], Callable[[Any], nn.Module]]
REPLACEMENTS: Replacements = {
    nn.Dropout: lambda dropout: FastDropout(dropout.p),
    Attention: lambda attention: FusedAttention(attention.dropout.p),
    SquaredReLU: lambda _: FastSquaredReLU(),
    Rotary: lambda _: ComplexRotary(),
}
Module = TypeVar("Module", bound=nn.Module)


def install(model: Module, replacements: Replacements = REPLACEMENTS) -> Module:
    """Replace the modules of a model that have a faster equivalent, in place; return the model."""
    for name, child in model.named_children():
        if type(child) in replacements:
            child = replacements[type(child)](child).train(child.training)
            model.register_module(name, child)
        install(child, replacements)
    return model
