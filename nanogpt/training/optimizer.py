"""The optimizer and the learning rate as a function of the step."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW

Schedule = Literal["constant", "cosine"]


def is_scheduled(settings: Mapping[str, Any]) -> bool:
    """Whether the learning rate changes at all with a model's settings."""
    return bool(settings["schedule"] != "constant" or settings["warmup_steps"])


def learning_rate_factor(
    step: int, max_steps: int, schedule: Schedule = "constant", warmup_steps: int = 0
) -> float:
    """Return what the peak learning rate is multiplied by at an optimizer step (from 0).

    It rises linearly over ``warmup_steps``; then it stays, or falls along half a cosine
    (Loshchilov and Hutter, 2017) to a tenth at ``max_steps``, the value that nanoGPT uses.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def adamw(
    parameters: Iterable[nn.Parameter],
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    fused: bool,
) -> AdamW:
    """Return AdamW (Loshchilov and Hutter, 2019) over all parameters alike, as the reference."""
    return AdamW(parameters, learning_rate, betas, weight_decay=weight_decay, fused=fused)
