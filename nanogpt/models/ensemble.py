"""An ensemble: several models whose probabilities are averaged.

Axes: B batch, T time, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.models.kv_cache import Cache


class EnsembleCache(Cache):
    """The caches of all members.

    Args:
        members: one cache per model.
    """

    def __init__(self, members: Sequence[Cache]) -> None:
        self.members = members
        self.layers = [layer for member in members for layer in member.layers]


class Ensemble(nn.Module):
    """Several models of one vocabulary, of any architectures, as one model.

    The context is that of the member that reads the fewest characters.

    Args:
        members: map ids (B, T) and a cache to logits (B, T, V).
    """

    def __init__(self, members: Sequence[Any]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.vocab_size = members[0].vocab_size
        self.block_size = min(member.block_size for member in members)

    def new_cache(self, dtype: torch.dtype | None = None) -> EnsembleCache:
        """Return an empty cache for ``forward``."""
        return EnsembleCache([member.new_cache(dtype) for member in self.members])  # type: ignore[operator]

    def forward(self, ids: Tensor, cache: EnsembleCache | None = None) -> Tensor:
        """Map ids (B, T) to the logarithms of the mean probabilities, (B, T, V), in float32."""
        return mean_probabilities(self.members, ids, cache.members if cache else None).log()


def mean_probabilities(
    models: Sequence[nn.Module] | nn.ModuleList,
    ids: Tensor,
    caches: Sequence[Cache | None] | None = None,
) -> Tensor:
    """Return the mean of the models' probabilities of the next characters, (B, T, V)."""
    pairs = zip(models, caches or [None] * len(models), strict=True)
    return torch.stack([model(ids, cache).float().softmax(-1) for model, cache in pairs]).mean(0)
