"""Logs the training speed in characters per second."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs ``characters_per_second`` at the logging interval, without evaluations and first step.

    Lightning's ``ThroughputMonitor`` counts batches and samples, not characters.
    """

    def __init__(self) -> None:
        self.start: float | None = None  # None until the first step, which may compile
        self.characters = 0  # since then, over all devices
        self.step = 0  # the last completed one

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the timer start after the first step."""
        self.start, self.step = None, trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count the characters of a batch, and log the speed if that is due."""
        self.characters += batch[0].numel() * trainer.world_size
        if trainer.global_step == self.step:
            return  # gradient accumulation
        self.step = trainer.global_step
        is_last = self.step == trainer.max_steps
        if self.start is None:
            self.restart(time.perf_counter())
        elif is_last or self.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            outputs["loss"].item()  # waits for a GPU, so that the time is right
            now = time.perf_counter()
            pl_module.log("characters_per_second", self.characters / (now - self.start))
            self.restart(now)

    def restart(self, now: float) -> None:
        """Restart the timer."""
        self.start, self.characters = now, 0

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exclude the time of evaluations."""
        if self.start is not None:
            self.restart(time.perf_counter())
