"""The bigram: the smallest language model, and the first rung of the story."""

import torch
from torch import Tensor, nn

from nanogpt.models.cache import Cache


class Bigram(nn.Module):
    """A table of next-character logits, one row for each character. It sees nothing else.

    Args:
        vocab_size: number of distinct characters, V; the table is V by V, drawn from N(0, 1).
        block_size: characters in a training window; the model itself looks back only one.

    Raises:
        ValueError: if a size is not positive.
    """

    def __init__(self, vocab_size: int, block_size: int = 8) -> None:
        super().__init__()
        for name, size in {"vocab_size": vocab_size, "block_size": block_size}.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        self.vocab_size, self.block_size = vocab_size, block_size
        self.table = nn.Embedding(vocab_size, vocab_size)

    def new_cache(self, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty cache for ``forward``; it will hold nothing, of whatever dtype."""
        return Cache(self.block_size, n_layer=1)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V); a cache only counts them."""
        if cache is not None:
            cache.layers[0].length += ids.shape[1]
        return self.table(ids)
