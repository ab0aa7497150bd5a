"""Decoding with a KV cache: read the prompt in one pass, then draw one token per step.

Axes: B batch, T time, V vocabulary.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from nanogpt.generation.quantization import cache_dtype
from nanogpt.generation.replay import GraphedStep, Step, record_cuda_graph, should_trace, trace
from nanogpt.generation.sampling import SamplingRule, next_probabilities, sample_ids
from nanogpt.hardware import prefer_flash_attention
from nanogpt.models import Model
from nanogpt.models.kv_cache import Cache

Context = Literal["refill", "exact"]
Forward = Callable[[Tensor, Cache], Tensor]  # ids (B, T) and a cache to logits (B, T, V)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; restore the mode of each of its modules afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def prefill(model: Forward, cache: Cache, rule: SamplingRule, ids: Tensor, u: Tensor) -> Tensor:
    """Read a whole window, ids (B, T), into an empty cache; draw the next ids, (B,)."""
    cache.set_length(0)
    return decode_step(model, cache, rule, ids, u)


def decode_step(model: Forward, cache: Cache, rule: SamplingRule, ids: Tensor, u: Tensor) -> Tensor:
    """Read the next ids, (B, T); draw those that follow, (B,)."""
    logits = model(ids, cache)[:, -1].float()  # (B, V), of the last position
    return sample_ids(next_probabilities(logits, rule), u)


@torch.inference_mode()
def decode(
    model: Model,
    prompt: Tensor,
    max_new_tokens: int,
    rule: SamplingRule,
    u_stream: Iterator[Tensor],
    context: Context = "refill",
) -> Iterator[Tensor]:
    """Yield the next id of each row of a prompt, ``max_new_tokens`` times.

    The context rules differ once the text is longer than ``block_size``. ``exact``: the model sees
    the last ``block_size`` characters, as in the reference. Every character then changes position
    at each step, which invalidates the cache, so the whole window is computed again. ``refill``:
    the window grows to ``block_size`` characters, then restarts from its last half, so that only
    one step in ``block_size // 2`` computes more than one position.

    Args:
        model: maps ids (B, T) and a cache to logits (B, T, V); in evaluation mode.
        prompt: ids (B, T), T at least 1, on the model's device.
        max_new_tokens: number of ids to draw for each row.
        rule: how an id is drawn.
        u_stream: uniform random numbers in [0, 1), (B,) for each step: see ``uniform_streams``.
        context: ``refill`` or ``exact``.

    Yields: ids of shape (B,).
    """
    block_size = model.block_size
    kept = block_size if context == "exact" else max(block_size // 2, 1)
    cache = model.new_cache(cache_dtype(model))
    traced = should_trace(prompt, max_new_tokens)
    forward: Forward = trace(model, cache, len(prompt)) if traced else model
    step: Step = partial(decode_step, forward, cache, rule)
    if prompt.device.type == "cuda":
        prefer_flash_attention()
        step = GraphedStep(step, cache, partial(record_cuda_graph, torch.cuda.graph_pool_handle()))
    window = prompt[:, -block_size:].long()  # (B, T)
    for i in range(max_new_tokens):
        is_full = window.shape[1] > block_size
        if is_full:
            window = window[:, -kept:]
        if i == 0 or is_full:
            ids = prefill(model, cache, rule, window, next(u_stream))
        else:
            ids = step(window[:, -1:], next(u_stream))
        window = torch.cat([window, ids[:, None]], dim=1)  # (B, T + 1)
        yield ids
