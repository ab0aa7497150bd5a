"""The parts of the Trainer that this project adds to the configured ones."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.profilers import PassThroughProfiler

from nanogpt.notices import notice
from nanogpt.training.callbacks import RunRecorder
from nanogpt.training.checkpoint_saver import AtomicCheckpointIO, CheckpointSaver
from nanogpt.training.hardware_settings import choose_precision, device_type
from nanogpt.training.progress_bar import StepBar


def replace_slow_precision(trainer: Namespace) -> None:
    """Replace the precision in the trainer's settings where it is slow, with a notice."""
    device = device_type(trainer.accelerator)
    trainer.precision, reason = choose_precision(trainer.precision or "32-true", device)
    if reason:
        notice(reason)


def add_fit_parts(trainer: Namespace, recorder: RunRecorder, bar_title: str) -> None:
    """Add the parts of ``fit`` to the trainer's settings, which already have its logger.

    The recorder gets a checkpoint saver unless checkpoints are disabled.
    """
    trainer.val_check_interval *= trainer.accumulate_grad_batches  # Lightning counts micro-batches
    if trainer.logger is False:
        notice("no logger: this run leaves no folder, no curves and no checkpoint")
        trainer.enable_checkpointing = False
    if trainer.enable_checkpointing is not False:
        recorder.saver = CheckpointSaver()
    trainer.callbacks = [*_as_list(trainer.callbacks), recorder]
    # true would make Lightning add a ModelCheckpoint
    trainer.enable_checkpointing = any(isinstance(c, Checkpoint) for c in trainer.callbacks)
    trainer.enable_progress_bar = trainer.enable_progress_bar is not False and sys.stderr.isatty()
    if trainer.enable_progress_bar:
        trainer.callbacks.append(StepBar(bar_title))
    trainer.profiler = trainer.profiler or NoProfiler()
    trainer.plugins = [*_as_list(trainer.plugins), AtomicCheckpointIO()]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


class NoProfiler(PassThroughProfiler):
    """Profiles nothing at a lower cost: Lightning enters a profiler some fifty times a step."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return the same context each time, instead of running a generator."""
        return self.nothing
