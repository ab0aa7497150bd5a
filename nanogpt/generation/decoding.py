"""Decoding: from a prompt, one character after the other."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from nanogpt.generation.replay import CUDARecorder, GraphedStep, Step
from nanogpt.generation.sampling import SamplingRule, draw, next_probabilities
from nanogpt.generation.traced import TracedModel, worth_tracing
from nanogpt.generation.quantization import cache_dtype
from nanogpt.models import Model
from nanogpt.models.kv_cache import Cache

Context = Literal["refill", "exact"]


@torch.inference_mode()
def decode(
    model: Model,
    prompt: Tensor,
    max_new_tokens: int,
    rule: SamplingRule,
    numbers: Iterator[Tensor],
    context: Context = "refill",
    cached: bool = True,
) -> Iterator[Tensor]:
    """Yield ``max_new_tokens`` times the next id of each row of a prompt.

    What a model sees of a text longer than its ``block_size`` is a matter of choice. ``exact``:
    always the last ``block_size`` characters, as the reference does. Each step then moves every
    character to another position, so that nothing kept of them holds, and all is computed again.
    ``refill``: the window grows to ``block_size`` characters and then starts again from its last
    half, so that only one step in ``block_size // 2`` computes more than one position. Up to
    ``block_size`` characters the two are the same.

    Args:
        model: maps ids (B, T) and a cache to logits (B, T, V); in evaluation mode.
        prompt: ids (B, T), T at least 1, on the model's device.
        max_new_tokens: how many ids to draw for each row.
        rule: how an id is drawn.
        numbers: uniform in [0, 1), (B,) for each step: see ``chances``.
        context: ``refill`` or ``exact``.
        cached: False sends the whole window through the model for each character: the plain
            loop, which says what this function means.

    Yields: ids of shape (B,).
    """
    block_size = model.block_size
    kept = block_size if context == "exact" else max(block_size // 2, 1)
    cache = model.new_cache(cache_dtype(model)) if cached else None
    run: Callable[..., Tensor] = model
    if cache is not None and worth_tracing(model, prompt, max_new_tokens):
        run = TracedModel(model, cache, len(prompt))
    step: Step = partial(next_ids, run, rule, cache)
    if cache is not None and prompt.device.type == "cuda":
        step = GraphedStep(step, cache, CUDARecorder())
    window = prompt[:, -block_size:].long()
    for _ in range(max_new_tokens):
        if window.shape[1] > block_size:
            window = window[:, -kept:]
            if cache is not None:
                cache.set_length(0)
        known = 0 if cache is None else cache.length
        drawn = step(window[:, known:], next(numbers))  # (B)
        window = torch.cat([window, drawn[:, None]], dim=1)  # (B, T + 1)
        yield drawn


def next_ids(
    model: Callable[..., Tensor],
    rule: SamplingRule,
    cache: Cache | None,
    ids: Tensor,
    chance: Tensor,
) -> Tensor:
    """Draw the next ids, (B,), after new ids (B, T) and what the cache holds, by chance (B,)."""
    logits = model(ids, cache)[:, -1].float()  # (B, V)
    return draw(next_probabilities(logits, rule), chance)
