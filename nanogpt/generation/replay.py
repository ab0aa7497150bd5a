"""CUDA graphs: all kernels of a decoding step started at once, where the CPU would start each.

A small model's step is a hundred small kernels, and takes as long as the CPU takes to start them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanogpt.models.kv_cache import Cache

Step = Callable[[Tensor, Tensor], Tensor]  # the ids that are new (B, T), chance (B) -> drawn (B)
Replay = Callable[[], Tensor]


class GraphedStep:
    """A decoding step that is recorded at each length of the cache, and from then on replayed.

    One graph for each length leaves the model as it is: a recording holds the very kernels that
    the step starts, over just the positions that are there. The first step at a length runs as it
    is, so that a short text pays for no recording; the second is recorded.

    Args:
        step: draws from a cache and new ids; it reads nothing from the GPU.
        cache: the step's; it stays the same one.
        record: runs a function without arguments so that it can be run again: its result lies in
            the same place each time.
    """

    def __init__(
        self, step: Step, cache: Cache, record: Callable[[Callable[[], Tensor]], Replay]
    ) -> None:
        self.step, self.cache, self.record = step, cache, record
        self.seen: set[int] = set()
        self.replays: dict[int, Replay] = {}

    def __call__(self, ids: Tensor, chance: Tensor) -> Tensor:
        """Draw the next ids, (B,)."""
        length = self.cache.length
        if ids.shape[1] != 1:
            return self.step(ids, chance)
        if length not in self.seen:
            self.seen.add(length)
            return self.step(ids, chance)
        if not self.replays:
            self.ids, self.chance = ids.clone(), chance.clone()
        self.ids.copy_(ids)
        self.chance.copy_(chance)
        if length not in self.replays:
            self.replays[length] = self.record(lambda: self.step(self.ids, self.chance))
            self.cache.set_length(length)
        drawn = self.replays[length]()
        self.cache.set_length(length + 1)
        return drawn.clone()


class CUDARecorder:
    """Records on a CUDA device, all graphs in one pool of memory."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """Record a function that only starts kernels; return what runs them again."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            result = function()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
