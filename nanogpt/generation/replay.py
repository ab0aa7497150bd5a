"""Replays of a decoding step, which skip Python or the launch of each kernel.

At batch 1 the step of a small model is about a hundred small operations, whose overhead is a large
part of the time. On a CPU, a ``torch.jit.trace`` runs them without Python; on a GPU, a CUDA graph
launches them together.

``torch.jit.trace`` is deprecated, but nothing else is as fast: for gpt10m at batch 1 on one thread,
plain Python takes 1.2 to 1.35 times as long with fp32 weights and 2.0 times with int8; a
``torch.export`` program takes 1.3 times with fp32, and int8 weights cannot be exported.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt.errors import summarize
from nanogpt.models.kv_cache import Cache
from nanogpt.notices import notice

MIN_TRACED_STEPS = 1000  # tracing takes a third of a second
MAX_TRACED_BATCH = 16  # for larger batches the overhead is a small part of the step

Step = Callable[[Tensor, Tensor], Tensor]  # ids (B, 1), random numbers (B,) -> drawn ids (B,)
Replay = Callable[[], Tensor]


def should_trace(prompt: Tensor, max_new_tokens: int) -> bool:
    """Return whether tracing saves time for a prompt (B, T)."""
    is_small = len(prompt) <= MAX_TRACED_BATCH and prompt.device.type == "cpu"
    return is_small and max_new_tokens >= MIN_TRACED_STEPS


def trace(model: Any, cache: Cache, batch_size: int) -> Callable[[Tensor, Cache], Tensor]:
    """Return a traced function that equals a model for a single new position, ids (B, 1).

    A trace fixes the branches that Python took. It is compared with the model at three lengths of
    the cache. If it differs in any bit, or if tracing fails, the model itself is returned.

    Args:
        model: in evaluation mode, on a CPU, under ``torch.inference_mode``.
        cache: an empty cache, which must be the one of all calls.
        batch_size: B.
    """
    half, last = model.block_size // 2, model.block_size - 1
    lengths = torch.empty(model.block_size)  # the shape of a slice tells the traced code a length
    ids = torch.zeros(batch_size, 1, dtype=torch.long)
    try:
        model(ids, cache)  # allocates the buffers
        for layer in cache.layers:
            assert layer.buffer is not None
            layer.buffer.zero_()  # uninitialized memory may contain NaN, which equals nothing
        with warnings.catch_warnings(action="ignore"):  # of branches and of the deprecation
            example = (ids, lengths[:half])
            traced = torch.jit.trace(_OnePosition(model, cache), example, check_trace=False)
        for length in (1, half, last):
            cache.set_length(length)
            if not torch.equal(model(ids, cache), traced(ids, lengths[:length])):
                return model
    except Exception:  # a model may contain code that cannot be traced
        return model
    finally:
        cache.set_length(0)

    def forward(ids: Tensor, cache: Cache) -> Tensor:
        length = cache.length
        logits = traced(ids, lengths[:length])
        cache.set_length(length + 1)
        return logits

    return forward


class _OnePosition(nn.Module):
    """The logits of one new position as a function of its ids and the length of the cache."""

    def __init__(self, model: nn.Module, cache: Cache) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, ids: Tensor, slice_of_length: Tensor) -> Tensor:
        self.cache.set_length(slice_of_length.shape[0])
        return self.model(ids, self.cache)


class GraphedStep:
    """A decoding step that is recorded once for each length of the cache, then replayed.

    With one graph per length, a graph contains the same kernels, over the same positions, as the
    step itself. The first step at a length runs without a graph, so that short texts do not pay for
    recording; the second one is recorded. If recording fails, all further steps run without graphs.

    Args:
        step: a decoding step that does not read from the GPU.
        cache: the cache of the step.
        record: makes a function without arguments repeatable; its result is always in the same
            memory.
    """

    def __init__(
        self, step: Step, cache: Cache, record: Callable[[Callable[[], Tensor]], Replay]
    ) -> None:
        self.step, self.cache, self.record = step, cache, record
        self.seen: set[int] = set()
        self.replays: dict[int, Replay] = {}
        self.failed = False

    def __call__(self, ids: Tensor, u: Tensor) -> Tensor:
        """Draw the next ids, (B,)."""
        length = self.cache.length
        if self.failed or length not in self.seen:
            self.seen.add(length)
            return self.step(ids, u)
        if not self.replays:
            self.ids, self.u = ids.clone(), u.clone()
        self.ids.copy_(ids)
        self.u.copy_(u)
        if length not in self.replays:
            try:
                self.replays[length] = self.record(lambda: self.step(self.ids, self.u))
            except Exception as error:  # of CUDA, or memory
                self.failed = True
                self.cache.set_length(length)
                notice(f"CUDA graphs failed, sampling continues without them: {summarize(error)}")
                return self.step(ids, u)
            self.cache.set_length(length)
        drawn = self.replays[length]()
        self.cache.set_length(length + 1)
        return drawn.clone()


def record_cuda_graph(pool: Any, function: Callable[[], Tensor]) -> Replay:
    """Record a function that only launches kernels; return a function that repeats them.

    Graphs that are never replayed at the same time can share a memory pool.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, pool=pool):
            result = function()
    except Exception:
        torch.cuda.set_stream(stream)  # which a capture that cannot be ended does not leave
        torch.cuda.synchronize()
        raise

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
