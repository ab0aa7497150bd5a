"""The bigram model: the smallest language model, and the first stage of the ladder."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nanogpt.models.gpt import check_sizes
from nanogpt.models.kv_cache import Cache


@dataclass(frozen=True)
class BigramConfig:
    """Settings of a bigram model.

    Args:
        block_size: longest context, in characters; the bigram itself only sees one.

    Raises:
        ValueError: if ``block_size`` is below 1.
    """

    block_size: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, "block_size")


class Bigram(nn.Module):
    """A (V, V) table of next-token logits, one row per token, drawn from N(0, 1)."""

    def __init__(self, vocab_size: int, config: BigramConfig) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, config.block_size
        self.token_embedding = nn.Embedding(vocab_size, vocab_size)

    def new_cache(self, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty cache for ``forward``, which only counts positions."""
        return Cache(self.block_size, n_layer=1)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to logits (B, T, V)."""
        if cache is not None:
            cache.layers[0].length += ids.shape[1]
        return self.token_embedding(ids)
