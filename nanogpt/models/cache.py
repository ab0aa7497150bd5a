"""What a model keeps of the characters it has read, so that the next one costs one position.

Axes: B batch, nh heads, T time, hs head size; S is all of the time so far.
"""

from torch import Tensor


class LayerCache:
    """The keys and values of one layer, in room that is taken once and used again.

    Args:
        size: most positions that it can hold: the model's ``block_size``.
    """

    def __init__(self, size: int) -> None:
        self.size, self.length = size, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new positions, (B, nh, T, hs); return all, (B, nh, S, hs)."""
        begin, self.length = self.length, self.length + k.shape[2]
        if not hasattr(self, "keys"):
            room = (*k.shape[:2], self.size, k.shape[3])
            self.keys, self.values = k.new_empty(room), v.new_empty(room)
        self.keys[:, :, begin : self.length] = k
        self.values[:, :, begin : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class Cache:
    """The caches of all layers of a model.

    Args:
        size: most positions that it can hold: the model's ``block_size``.
        n_layer: layers of the model.
    """

    def __init__(self, size: int, n_layer: int) -> None:
        self.layers = [LayerCache(size) for _ in range(n_layer)]

    @property
    def length(self) -> int:
        """Positions that it holds."""
        return self.layers[0].length

    def clear(self) -> None:
        """Forget all, and keep the room."""
        for layer in self.layers:
            layer.length = 0
