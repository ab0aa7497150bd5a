"""A model's step recorded as one program: its operators run without Python in between.

At batch 1 a third of a step of gpt10m on a CPU is Python, going from module to module.
"""

import warnings
from typing import TypeGuard

import torch
from torch import Tensor, nn

from nanogpt.models import GPT, ModernGPT
from nanogpt.models.kv_cache import Cache

WORTH_IT_FROM = 1000  # characters: recording takes a third of a second
WORTH_IT_UP_TO = 16  # streams: beyond, a step is arithmetic


def worth_tracing(model: nn.Module, prompt: Tensor, max_new_tokens: int) -> TypeGuard[GPT | ModernGPT]:
    """Return whether a recording is repaid: prompt (B, T), ``max_new_tokens`` for each row."""
    small = len(prompt) <= WORTH_IT_UP_TO and prompt.device.type == "cpu"
    return isinstance(model, GPT | ModernGPT) and small and max_new_tokens >= WORTH_IT_FROM


class TracedModel:
    """Does what a model does, a single position by a recording of it.

    A recording has Python's branches as they were taken: it is compared with the model at three
    lengths of the cache, and left alone, as where it cannot be made, unless all is equal to the
    last bit.

    Args:
        model: in evaluation mode, on a CPU, under ``torch.inference_mode``.
        cache: an empty one, which has to be the one of all calls.
        batch_size: rows of the ids of all calls, B.
    """

    def __init__(self, model: GPT | ModernGPT, cache: Cache, batch_size: int) -> None:
        self.model, self.traced = model, None
        self.lengths = torch.empty(model.block_size)  # its slices' shapes tell a length
        ids = torch.zeros(batch_size, 1, dtype=torch.long)
        try:
            model(ids, cache)  # which takes the room
            for layer in cache.layers:
                assert layer.buffer is not None
                layer.buffer.zero_()
            with warnings.catch_warnings(action="ignore"):  # of the branches, and of its old age
                example = (ids, self.lengths[: model.block_size // 2])
                traced = torch.jit.trace(_Position(model, cache), example, check_trace=False)
            lengths = (1, model.block_size // 2, model.block_size - 1)
            if all(self._same(traced, ids, cache, length) for length in lengths):
                self.traced = traced
        except Exception:  # a model may be changed in any way: then Python runs it
            self.traced = None
        cache.set_length(0)

    def __call__(self, ids: Tensor, cache: Cache) -> Tensor:
        """Map ids (B, T) to logits (B, T, V), of the last position only where T is 1."""
        length = cache.length
        if self.traced is None or ids.shape[1] != 1 or length == 0:
            return self.model(ids, cache)
        logits = self.traced(ids, self.lengths[:length])
        cache.set_length(length + 1)
        return logits

    def _same(self, traced: nn.Module, ids: Tensor, cache: Cache, length: int) -> bool:
        cache.set_length(length)
        expected = self.model(ids, cache)
        return torch.equal(traced(ids, self.lengths[:length]), expected)


class _Position(nn.Module):
    """The logits of one more position, as a function of the ids and the length of the cache."""

    def __init__(self, model: GPT | ModernGPT, cache: Cache) -> None:
        super().__init__()
        self.model, self.cache = model, cache

    def forward(self, ids: Tensor, length: Tensor) -> Tensor:
        self.cache.set_length(length.shape[0])
        return self.model(ids, self.cache)
