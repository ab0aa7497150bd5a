"""The KV cache: keys and values of the tokens read so far, so that a new token costs one position.

Axes: B batch, nh heads, T new positions, S all positions so far, hs head size, C channels.
"""

import torch
from torch import Tensor


class ShiftCache:
    """The inputs of a token-shift layer at every position so far, zero-padded at the start.

    It keeps all positions rather than the last two, so that its length can be set back.

    Args:
        size: the most positions it can hold: the model's ``block_size``.
    """

    def __init__(self, size: int) -> None:
        self.size, self.length = size, 0
        self.buffer: Tensor | None = None  # (B, 2 + size, C); the first two positions are zeros

    def append(self, x: Tensor) -> Tensor:
        """Add inputs (B, T, C); return them preceded by the last two, (B, 2 + T, C)."""
        B, T, C = x.shape
        if self.buffer is None:
            self.buffer = x.new_zeros(B, 2 + self.size, C)
        assert len(self.buffer) == B, "a cache belongs to one batch"
        start, self.length = self.length, self.length + T
        self.buffer.narrow(1, 2 + start, T).copy_(x)
        return self.buffer.narrow(1, start, 2 + T)


class LayerCache:
    """The keys and values of one layer, in buffers that are allocated once.

    Args:
        size: the most positions it can hold: the model's ``block_size``.
        dtype: of the buffers; None takes the dtype of the first keys.
    """

    def __init__(self, size: int, dtype: torch.dtype | None = None) -> None:
        self.size, self.dtype, self.length = size, dtype, 0
        self.buffer: Tensor | None = None  # (2, B, nh, size, hs): keys, then values
        self.shifts = (ShiftCache(size), ShiftCache(size))  # for attention and feed-forward

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Add keys and values (B, nh, T, hs); return all of them, (B, nh, S, hs) each."""
        start, self.length = self.length, self.length + k.shape[2]
        if self.buffer is None:
            B, nh, _, hs = k.shape
            self.buffer = k.new_empty((2, B, nh, self.size, hs), dtype=self.dtype)
        assert len(k) == self.buffer.shape[1], "a cache belongs to one batch"
        keys, values = self.buffer.unbind()
        keys.narrow(2, start, k.shape[2]).copy_(k)
        values.narrow(2, start, k.shape[2]).copy_(v)
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)


class Cache:
    """The caches of all layers of a model.

    Args:
        size: the most positions it can hold: the model's ``block_size``.
        n_layer: number of layers.
        dtype: of keys and values; None takes the model's dtype.
    """

    def __init__(self, size: int, n_layer: int, dtype: torch.dtype | None = None) -> None:
        self.layers = [LayerCache(size, dtype) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """The number of positions it holds."""
        return self.layers[0].length

    def set_length(self, length: int) -> None:
        """Keep the first ``length`` positions; 0 empties the cache."""
        for layer in self.layers:
            for part in (layer, *layer.shifts):
                part.length = length
