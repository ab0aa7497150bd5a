"""The learning rate as a function of the optimizer step.

Called by ``LanguageModel.configure_optimizers``, and by ``resume.py`` for the rate of a
resumed run.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from nanogpt.errors import UserError

Schedule = Literal["constant", "cosine", "linear"]
LINEAR_DECAY = 0.6  # fraction of all steps over which the linear schedule decays


def is_scheduled(hparams: Mapping[str, Any]) -> bool:
    """Return whether the learning rate of a model with these hyperparameters changes."""
    return bool(hparams["schedule"] != "constant" or hparams["warmup_steps"])


def learning_rate_factor(
    step: int, max_steps: int, schedule: Schedule = "constant", warmup_steps: int = 0
) -> float:
    """Return the factor of the peak learning rate at an optimizer step, counted from 0.

    After a linear warm-up it is constant; or falls along half a cosine to 0.1 at ``max_steps``, as
    in nanoGPT; or falls linearly to zero over the last 60% of the steps. Source of the cosine:
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(min((max_steps - step) / (LINEAR_DECAY * max_steps), 1.0), 0.0)
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * progress)) / 2


def build_scheduler(optimizer: Optimizer, hparams: Mapping[str, Any], max_steps: float) -> LambdaLR:
    """Build the scheduler of an optimizer from the hyperparameters of the LightningModule.

    Raises:
        UserError: if the number of steps is infinite.
    """
    if max_steps == math.inf:
        if hparams["schedule"] != "constant":
            raise UserError(f"the schedule {hparams['schedule']} needs Trainer(max_steps=N)")
        max_steps = -1  # only warms up
    factor = partial(
        learning_rate_factor,
        max_steps=int(max_steps),
        schedule=hparams["schedule"],
        warmup_steps=hparams["warmup_steps"],
    )
    return LambdaLR(optimizer, factor)
