"""Makes dropout a function of the seed, the optimizer step and the process."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nanogpt.text.batches import hash_seed

STREAMS_PER_PROCESS = 2**40  # one for each step; those below are of the training windows


class StepSeed(Callback):
    """Seeds the global random generators at the start of each optimizer step.

    So a resumed run continues with the dropout masks of an uninterrupted one on as many processes,
    and no random state has to be saved. Each process has its own masks.

    Args:
        seed: random seed of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step: int | None = None  # the last one that was seeded

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the next step, even if an earlier fit has seeded it."""
        self.step = None

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Seed the generators at the first micro-batch of a step."""
        if self.step != trainer.global_step:
            self.step = trainer.global_step
            stream = (trainer.global_rank + 1) * STREAMS_PER_PROCESS + self.step
            seed_generators(hash_seed(self.seed, stream), trainer.strategy.root_device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the global random generators of the CPU and of a device.

    ``torch.manual_seed`` would queue a call for each other kind of device that has not been used.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)
