"""The stages of the ladder between bigram and GPT: the GPT of ``gpt.py`` with parts removed.

A removed part is an ``nn.Identity``; with all parts present the model is the GPT, weight for
weight.

Axes: B batch, T time, S time including cached positions, C channels (n_embd).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nanogpt.models.gpt import GPT, Block, GPTConfig
from nanogpt.models.kv_cache import LayerCache

PARTS = ("mean", "attention", "feed_forward", "residual", "norm")


@dataclass(frozen=True)
class AblatedGPTConfig:
    """Settings of a GPT without some of its parts.

    Args:
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: number of attention heads in a block.
        n_embd: width of the model, C.
        parts: the parts of a block: one of ``mean`` and ``attention``, and any of
            ``feed_forward``, ``residual`` (the connections and the output projection) and ``norm``
            (the two of each block and the final one).
        positions: ``learned`` position embeddings, or the fixed ``sinusoidal`` ones.

    Raises:
        ValueError: if a size is below 1 or the parts do not make a block.
    """

    block_size: int = 8
    n_layer: int = 1
    n_head: int = 1
    n_embd: int = 32
    parts: tuple[str, ...] = PARTS[1:]
    positions: Literal["learned", "sinusoidal"] = "learned"

    def __post_init__(self) -> None:
        self.gpt_config()  # checks the sizes
        parts = self.parts
        for part in parts:
            if part not in PARTS:
                raise ValueError(f"no part {part!r}; choose from {', '.join(PARTS)}")
        if ("mean" in parts) == ("attention" in parts):
            raise ValueError("parts must contain exactly one of mean and attention")
        if "residual" in parts and "feed_forward" not in parts:
            raise ValueError("the part residual needs feed_forward: add it to parts")
        if "residual" not in parts and "attention" in parts and self.n_embd % self.n_head:
            raise ValueError(
                f"without residual, n_embd {self.n_embd} must be a multiple of n_head {self.n_head}"
            )
        if self.positions not in ("learned", "sinusoidal"):
            raise ValueError(f"positions must be learned or sinusoidal, not {self.positions!r}")

    def gpt_config(self) -> GPTConfig:
        """Return the settings of the GPT with all parts."""
        return GPTConfig(self.block_size, self.n_layer, self.n_head, self.n_embd)


def mean_by_loop(x: Tensor) -> Tensor:
    """Average each position with all previous ones: (B, T, C) to (B, T, C)."""
    return torch.stack([x[:, : t + 1].mean(1) for t in range(x.shape[1])], dim=1)


def mean_by_matrix(x: Tensor) -> Tensor:
    """Compute the same mean as a product with a lower-triangular matrix of 1/(t + 1)."""
    weights = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype, device=x.device).tril()  # (T, T)
    return (weights / weights.sum(1, keepdim=True)) @ x


def mean_by_softmax(x: Tensor) -> Tensor:
    """Compute the same mean as a softmax over equal scores: attention that ignores content."""
    scores = torch.full((x.shape[1], x.shape[1]), -math.inf, dtype=x.dtype, device=x.device)
    return scores.triu(1).softmax(1) @ x  # the future at -inf, all other scores 0


class CausalMean(nn.Module):
    """Average each position with all previous ones, in place of attention."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), averaging over the cached positions as well."""
        seen = x
        if cache is not None:
            seen = cache.append(x[:, None], x[:, None])[0][:, 0].to(x.dtype)  # (B, S, C)
        return mean_by_matrix(seen)[:, -x.shape[1] :]


class ChainedBlock(Block):
    """A block without residual connections: each layer only sees the output of the previous one."""

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.mlp(self.ln_2(self.attn(self.ln_1(x), cache)))


def sinusoidal_embeddings(block_size: int, n_embd: int) -> Tensor:
    """Return fixed position embeddings, (T, C), with wavelengths from 2π to 10,000 · 2π.

    Even channels are sines, odd ones cosines (Vaswani et al., 2017, section 3.5).
    """
    channels = torch.arange(0, n_embd, 2)
    angles = torch.arange(block_size)[:, None] / 10_000 ** (channels / n_embd)  # (T, C / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :n_embd]


class AblatedGPT(GPT):
    """A GPT without some of its parts."""

    def __init__(self, vocab_size: int, config: AblatedGPTConfig) -> None:
        gpt, parts = config.gpt_config(), config.parts
        super().__init__(vocab_size, gpt)
        if config.positions == "sinusoidal":
            table = sinusoidal_embeddings(config.block_size, config.n_embd)
            self.position_embedding = nn.Embedding.from_pretrained(table, freeze=True)
        if "residual" not in parts:
            self.blocks = nn.ModuleList(ChainedBlock(gpt) for _ in range(config.n_layer))
        for block in self.blocks:
            if "mean" in parts:
                block.attn = CausalMean()
            elif "residual" not in parts:
                block.attn.register_module("out_proj", nn.Identity())  # type: ignore[union-attr]
            if "feed_forward" not in parts:
                block.mlp = nn.Identity()
            if "norm" not in parts:
                block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
        if "norm" not in parts:
            self.register_module("ln_f", nn.Identity())
