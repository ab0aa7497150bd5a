"""Elementwise functions of the modern GPT in fewer passes over memory, for eager mode on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanogpt.kernels.dropout import is_eager_on_cpu
from nanogpt.models.modern import Rotary, RotaryTables, SquaredReLU


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


class FastSquaredReLU(SquaredReLU):
    """``SquaredReLU`` with a backward pass of one product."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise."""
        if is_eager_on_cpu(x) and x.requires_grad:
            return _CPUSquaredReLU.apply(x)
        return super().forward(x)


class ComplexRotary(Rotary):
    """``Rotary`` as one product of complex numbers.

    PyTorch's compiler and half precision do not support complex numbers: those use ``Rotary``.
    """

    def forward(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Map (B, nh, T, hs) to the same shape and dtype."""
        if is_eager_on_cpu(x) and x.dtype in (torch.float32, torch.float64):
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
            rotated = pairs * torch.complex(*tables)
            return torch.view_as_real(rotated).flatten(-2).type_as(x)
        return super().forward(x, tables)
