"""The rungs of the ladder: the GPT of ``gpt.py`` with parts taken away.

From an average over the past to the whole transformer, one part at a time. What is absent is an
``nn.Identity``; with every part in place a rung is the GPT, weight for weight.

Axes: B batch, T time, C channels (n_embd).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nanogpt.models.cache import LayerCache
from nanogpt.models.gpt import GPT, Block

PARTS = ("mean", "attention", "feed_forward", "residual", "norm")


def mean_by_loop(x: Tensor) -> Tensor:
    """Average each position with all before it, as one would say it: (B, T, C) to (B, T, C)."""
    return torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], dim=1)


def mean_by_matrix(x: Tensor) -> Tensor:
    """The same as a product with a lower-triangular matrix whose row t holds 1/(t + 1)."""
    weights = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()  # (T, T)
    return (weights / weights.sum(1, keepdim=True)) @ x


def mean_by_softmax(x: Tensor) -> Tensor:
    """The same as a softmax over equal scores, the future at -inf: attention without content."""
    scores = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype, device=x.device)
    return scores.triu(1).softmax(1) @ x  # on and below the diagonal every score is 0


class CausalMean(nn.Module):
    """Every position gathers from itself and all before it, each with the same weight."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        past = x
        if cache is not None:
            past = cache.append(x[None, :, None])[0][:, 0].to(x.dtype)  # (B, S, C)
        return mean_by_matrix(past)[:, -x.shape[1] :]


class ChainedBlock(Block):
    """A block without residual connections: each part sees only what the one before passes on."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.mlp(self.ln_2(self.attn(self.ln_1(x), cache)))


def sinusoids(block_size: int, n_embd: int) -> Tensor:
    """Return fixed position embeddings, (T, C): waves of lengths from 2π to 10,000 · 2π.

    Source: Vaswani et al. (2017), section 3.5; sines on the even channels, cosines on the odd.
    """
    channels = torch.arange(0, n_embd, 2)
    angles = torch.arange(block_size)[:, None] / 10_000 ** (channels / n_embd)  # (T, C / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :n_embd]


class Rung(GPT):
    """A GPT that lacks some of its parts.

    Args:
        vocab_size: number of distinct characters, V.
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: attention heads in a block.
        n_embd: width of the model, C.
        parts: what a block is made of: either ``mean`` or ``attention``, and any of
            ``feed_forward``, ``residual`` (connections, and the output projection that comes with
            them) and ``norm`` (the two of each block, and the final one).
        positions: ``learned`` embeddings, or the fixed ``sinusoidal`` ones.

    Raises:
        ValueError: if a size is not positive, or the parts make no block.
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 8,
        n_layer: int = 1,
        n_head: int = 1,
        n_embd: int = 32,
        parts: Sequence[str] = PARTS[1:],
        positions: Literal["learned", "sinusoidal"] = "learned",
    ) -> None:
        super().__init__(vocab_size, block_size, n_layer, n_head, n_embd)
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"no part {part!r}; parts are {', '.join(PARTS)}")
        if ("mean" in parts) == ("attention" in parts):
            raise ValueError("a block gathers by one of mean and attention: name one in parts")
        if "residual" in parts and "feed_forward" not in parts:
            raise ValueError("residual connections go around a feed_forward too: name it in parts")
        if "residual" not in parts and "attention" in parts and n_embd % n_head:
            raise ValueError(f"without residual, n_embd {n_embd} must be a multiple of n_head")
        if positions not in ("learned", "sinusoidal"):
            raise ValueError(f"positions must be learned or sinusoidal, not {positions}")
        if positions == "sinusoidal":
            table = sinusoids(block_size, n_embd)
            self.position_embedding = nn.Embedding.from_pretrained(table, freeze=True)
        if "residual" not in parts:
            head_size = n_embd // n_head
            self.blocks = nn.ModuleList(
                ChainedBlock(n_embd, n_head, head_size, 0.0) for _ in range(n_layer)
            )
        self._leave_out(parts)

    def _leave_out(self, parts: Sequence[str]) -> None:
        for block in self.blocks:
            if "mean" in parts:
                block.register_module("attn", CausalMean())
            elif "residual" not in parts:
                block.attn.register_module("projection", nn.Identity())  # type: ignore[union-attr]
            if "feed_forward" not in parts:
                block.register_module("mlp", nn.Identity())
            if "norm" not in parts:
                block.register_module("ln_1", nn.Identity())
                block.register_module("ln_2", nn.Identity())
        if "norm" not in parts:
            self.register_module("ln_f", nn.Identity())
