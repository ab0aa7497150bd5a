"""What a model keeps of the characters it has read, so that the next one costs one position.

Axes: B batch, nh heads, T time, hs head size, C channels; S is all of the time so far.
"""

import torch
from torch import Tensor


class Earlier:
    """The few positions before the new ones, which may have been read before; first come zeros.

    It holds all positions, not just the few, so that a length may be set to any that was written:
    for a layer of C channels as much as its keys, or its values.

    Args:
        size: most positions that it can hold: the model's ``block_size``.
        few: how many positions are given back with the new ones.
    """

    def __init__(self, size: int, few: int = 2) -> None:
        self.size, self.few, self.length = size, few, 0
        self.room: Tensor | None = None  # (B, few + size, C), the first few of them zeros

    def append(self, x: Tensor) -> Tensor:
        """Add new positions, (B, T, C); return the few before them and them, (B, few + T, C)."""
        if self.room is None:
            self.room = x.new_zeros(x.shape[0], self.few + self.size, x.shape[2])
        assert len(x) == len(self.room), "a cache belongs to one batch"
        begin, self.length = self.length, self.length + x.shape[1]
        self.room.narrow(1, self.few + begin, x.shape[1]).copy_(x)
        return self.room.narrow(1, begin, self.few + x.shape[1])


class LayerCache:
    """The keys and values of one layer, in room that is taken once and used again.

    Beside them lies what a layer that shifts tokens needs: the inputs, at the positions before, of
    its attention and of its feed-forward layer.

    Args:
        size: most positions that it can hold: the model's ``block_size``.
        dtype: to hold keys and values in; None takes that of the first ones.
    """

    def __init__(self, size: int, dtype: torch.dtype | None = None) -> None:
        self.size, self.dtype, self.length = size, dtype, 0
        self.room: Tensor | None = None
        self.earlier = (Earlier(size), Earlier(size))

    def append(self, kv: Tensor) -> tuple[Tensor, ...]:
        """Add keys and values of new positions, (2, B, nh, T, hs); return all, (B, nh, S, hs)."""
        begin, self.length = self.length, self.length + kv.shape[3]
        if self.room is None:
            room = (*kv.shape[:3], self.size, kv.shape[4])
            self.room = kv.new_empty(room, dtype=self.dtype)
        assert kv.shape[1] == self.room.shape[1], "a cache belongs to one batch"
        self.room.narrow(3, begin, kv.shape[3]).copy_(kv)
        return self.room.narrow(3, 0, self.length).unbind()


class Cache:
    """The caches of all layers of a model.

    Args:
        size: most positions that it can hold: the model's ``block_size``.
        n_layer: layers of the model.
        dtype: to hold keys and values in; None takes that of the model.
    """

    def __init__(self, size: int, n_layer: int, dtype: torch.dtype | None = None) -> None:
        self.layers = [LayerCache(size, dtype) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Positions that it holds."""
        return self.layers[0].length

    def set_length(self, length: int) -> None:
        """Hold so many of the positions that have been written; with 0 forget all of them."""
        for layer in self.layers:
            for part in (layer, *layer.earlier):
                part.length = length
