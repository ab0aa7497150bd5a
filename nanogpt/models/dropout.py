"""Dropout that is cheap on a CPU.

PyTorch draws one double-width random number for each element it may drop, which costs more than
the layer it follows. Here each element takes 16 bits, four from one 64-bit draw of the same
default generator: the probability is right to 2^-16, the rescaling uses the probability
that is really drawn, and everything else is dropout as defined by Srivastava et al. (2014).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether a CPU will run the operators on ``x`` one by one, with no compiler to join them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def random_bits(n: int) -> Tensor:
    """Draw ``n`` uniform 16-bit integers, as int16, from the CPU's default generator."""
    words = torch.empty((n + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:n]


def threshold(p: float) -> tuple[int, float]:
    """Return where int16 bits begin to be kept, and the factor that restores the mean."""
    dropped = min(round(p * 2**16), 2**16 - 1)
    return dropped - 2**15, 2**16 / (2**16 - dropped)


def keep_mask(bits: Tensor, p: float, like: Tensor) -> Tensor:
    """Turn bits into zeros and ones of ``like``'s dtype, in the same shape and in one pass."""
    mask = torch.empty_like(like)
    return torch.ge(bits, threshold(p)[0], out=mask)


class _CPUDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p, bits = p, random_bits(x.numel()).view(x.shape)
        ctx.save_for_backward(bits)  # unlike an attribute, freed once the backward pass is done
        return keep_mask(bits, p, x).mul_(x).mul_(threshold(p)[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (bits,) = ctx.saved_tensors
        return keep_mask(bits, ctx.p, grads[0]).mul_(grads[0]).mul_(threshold(ctx.p)[1]), None


class Dropout(nn.Dropout):
    """``nn.Dropout``, with cheap random bits on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each element with probability ``p`` in training, and rescale the others."""
        if not self.training or self.p == 0:
            return input
        if is_eager_on_cpu(input):
            return _CPUDropout.apply(input, self.p)
        return F.dropout(input, self.p)
