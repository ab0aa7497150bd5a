"""Elementwise functions of the modern GPT, in as few passes over memory as a CPU needs.

On a CPU such a function takes as long as reading and writing its tensors, forward and backward;
elsewhere it is written out, and a compiler may join it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanogpt.models.dropout import is_eager_on_cpu


class _CPUSquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (positive,) = ctx.saved_tensors
        return torch.mul(grads[0], positive).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    """Square what is positive, zero the rest (So et al., 2021), in any shape."""
    if is_eager_on_cpu(x) and x.requires_grad:
        return _CPUSquaredReLU.apply(x)
    return F.relu(x).square()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels: (B, nh, T, hs), by (T, hs / 2) cosines and sines.

    The result is of ``x``'s dtype. A pair is a complex number, and turning it is a product;
    PyTorch's compiler and half precision have no complex numbers.
    """
    pairs = x.unflatten(-1, (-1, 2))
    if is_eager_on_cpu(x) and x.dtype in (torch.float32, torch.float64):
        turned = torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).type_as(x)
