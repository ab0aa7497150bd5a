"""Scaled dot-product attention over the past, by the fastest exact way that the machine has.

Axes: B batch, nh heads, T time, hs head size; N is B * nh.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from nanogpt.models.dropout import is_eager_on_cpu, keep_mask, random_bits, threshold

CHUNK, ROWS = 96, 64  # heads and queries at work at a time: few enough for a CPU's cache


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Return ``dropout(softmax(q kᵀ / sqrt(hs), masked to the past)) v``.

    Shapes: q (B, nh, T, hs), k and v (B, nh, S, hs) with S at least T: the queries are those of
    the last T positions; with dropout S must be T. Where k and v are of another dtype, as in a
    cache of half precision, it is computed in theirs. Source: Vaswani et al. (2017), section 3.2.1.
    PyTorch's fused attention does the work, save for dropout on a CPU, where it has no fused
    path: there the weights are made, dropped and used tile by tile, only those of the past, and
    made again for the backward pass.
    """
    if dropout > 0 and is_eager_on_cpu(q):
        return _CPUAttentionWithDropout.apply(q, k, v, dropout)
    if q.dtype != k.dtype:
        return causal_attention(q.to(k.dtype), k, v).to(q.dtype)
    T, S = q.shape[2], k.shape[2]
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    assert dropout == 0
    # a single query, the last position, may look at all
    past = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=past)


def causal_mask(size: int, like: Tensor) -> Tensor:
    """Return the (T, T) matrix of 0 on and below the diagonal, and -inf above it."""
    return torch.full((size, size), -math.inf, dtype=like.dtype).triu(1)


def attention_weights(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """Return ``softmax(q kᵀ / sqrt(hs) + mask)``: (n, T, hs), (n, S, hs), (T, S) to (n, T, S)."""
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return scores.softmax(-1)


def tiles(n_heads: int, size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut N causal (T, T) matrices up: yield heads, queries, and the keys that these look at."""
    for begin in range(0, size, ROWS):
        end = min(begin + ROWS, size)
        for n in range(0, n_heads, CHUNK):
            yield slice(n, n + CHUNK), slice(begin, end), slice(0, end)


class _CPUAttentionWithDropout(torch.autograd.Function):
    """Attention whose weights exist for one tile at a time, forward and backward.

    With D = dropout(P) and Y = D V, the gradient at the scores is D∘(dY Vᵀ) - P∘rowsum(dY∘Y):
    the row sum as in FlashAttention (Dao et al., 2022, appendix B).
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
