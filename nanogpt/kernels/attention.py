"""Causal attention by PyTorch's fused kernel, or tile by tile for dropout on a CPU.

Axes: B batch, nh heads, T time, S time with the cache, hs head size; N is B * nh.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from nanogpt.kernels.dropout import is_eager_on_cpu, keep_mask, random_bits, threshold
from nanogpt.models.gpt import Attention

CHUNK, ROWS = 96, 64  # heads and queries per tile: small enough for a CPU's cache


class FusedAttention(Attention):
    """The same function as ``Attention``, without storing the (T, S) weights of all heads.

    PyTorch's fused kernel does the work, except with dropout on a CPU, for which it has none: there
    the weights are computed tile by tile, and again for the backward pass.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Map q (B, nh, T, hs), k and v (B, nh, S, hs) to (B, nh, T, hs).

        If the cache is of another dtype than q, the computation is done in the cache's.
        """
        if q.dtype != k.dtype:
            return self(q.to(k.dtype), k, v).to(q.dtype)
        p = self.dropout.p if self.training else 0.0
        T, S = q.shape[2], k.shape[2]
        if T == S:
            if p > 0 and is_eager_on_cpu(q):
                return _TiledAttention.apply(q, k, v, p)
            return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        assert p == 0, "dropout needs queries for all positions"
        # a single query is the last position and attends to all
        past = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=past)


def chosen_backend(q: Tensor, p: float) -> SDPBackend:
    """Return the kernel that PyTorch chooses for causal attention with queries (B, nh, T, hs)."""
    return SDPBackend(torch._fused_sdp_choice(q, q, q, None, p, True))


def causal_mask(size: int, like: Tensor) -> Tensor:
    """Return the (T, T) matrix of 0 on and below the diagonal and -inf above."""
    return torch.full((size, size), -math.inf, dtype=like.dtype).triu(1)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return ``softmax(q kᵀ / sqrt(hs) + mask)``: (n, T, hs), (n, S, hs), (T, S) to (n, T, S)."""
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1)


def tiles(n_heads: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Divide N causal (T, T) matrices into tiles: yield heads, queries, and the keys they see."""
    for start in range(0, size, ROWS):
        end = min(start + ROWS, size)
        for n in range(0, n_heads, CHUNK):
            yield slice(n, n + CHUNK), slice(start, end), slice(0, end)


class _TiledAttention(torch.autograd.Function):
    """Attention with dropout, whose weights exist for one tile at a time.

    With D = dropout(P) and Y = D V, the gradient of the scores is D∘(dY Vᵀ) - P∘rowsum(dY∘Y); the
    row sum is that of FlashAttention (Dao et al., 2022, appendix B).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, T, hs)
        N, T, _ = q.shape
        y, mask, rescale, bits = torch.empty_like(v), causal_mask(T, q), threshold(p)[1], []
        for c, rows, past in tiles(N, T):
            weights = attention_weights(q[c, rows], k[c, past], mask[rows, past])
            bits.append(random_bits(weights.numel()).view(weights.shape))
            weights.mul_(keep_mask(bits[-1], p, weights))
            y[c, rows] = torch.bmm(weights, v[c, past]).mul_(rescale)
        ctx.p, ctx.shape = p, shape
        ctx.save_for_backward(q, k, v, y, *bits)
        return y.view(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        q, k, v, y, *bits = ctx.saved_tensors
        dy, scale = grads[0].flatten(0, 1), q.shape[-1] ** -0.5
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        mask, rescale = causal_mask(q.shape[1], q), threshold(ctx.p)[1]
        delta = (dy * y).sum(-1, keepdim=True)  # (N, T, 1)
        for drawn, (c, rows, past) in zip(bits, tiles(*q.shape[:2]), strict=True):
            weights = attention_weights(q[c, rows], k[c, past], mask[rows, past])
            dropped = keep_mask(drawn, ctx.p, weights).mul_(weights)
            dv[c, past].baddbmm_(dropped.transpose(1, 2), dy[c, rows], alpha=rescale)
            dscores = torch.bmm(dy[c, rows] * rescale, v[c, past].transpose(1, 2)).mul_(dropped)
            dscores.addcmul_(weights, delta[c, rows], value=-1)
            dq[c, rows] = torch.bmm(dscores, k[c, past]).mul_(scale)
            dk[c, past].baddbmm_(dscores.transpose(1, 2), q[c, rows], alpha=scale)
        return dq.view(ctx.shape), dk.view(ctx.shape), dv.view(ctx.shape), None
