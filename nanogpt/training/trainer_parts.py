"""The callbacks and plugins that ``fit`` adds to those of the user."""

import sys
from collections.abc import Iterable

from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar

from nanogpt.errors import UserError
from nanogpt.notices import notice
from nanogpt.training.callbacks import (
    BestCheckpoint,
    EvaluationReport,
    GracefulStop,
    LastCheckpoint,
    NonFiniteGuard,
    SampleWriter,
    Throughput,
)
from nanogpt.training.callbacks.checkpoints import AtomicCheckpointIO
from nanogpt.training.callbacks.progress_bar import StepBar
from nanogpt.training.hardware_settings import choose_precision, device_type
from nanogpt.training.loggers import as_list

# by their names in the section ``callbacks`` of a config, in the order of their hooks
DEFAULT_CALLBACKS: dict[str, type[Callback]] = {
    "graceful_stop": GracefulStop,
    "non_finite_guard": NonFiniteGuard,
    "evaluation": EvaluationReport,
    "samples": SampleWriter,
    "throughput": Throughput,
    "best_checkpoint": BestCheckpoint,
    "last_checkpoint": LastCheckpoint,
}


def replace_slow_precision(trainer: Namespace) -> None:
    """Replace the precision in the trainer's settings where it is slow, with a notice."""
    if trainer.precision is None:  # that of a plugin, or the default
        return
    trainer.precision, reason = choose_precision(
        trainer.precision, device_type(trainer.accelerator)
    )
    if reason:
        notice(reason)


def add_fit_parts(
    trainer: Namespace, run_callbacks: list[Callback], named: Iterable[Callback | None], title: str
) -> None:
    """Add callbacks and plugins to the trainer's settings.

    A callback of the user replaces a default one of the same class. The progress bar is shown on a
    terminal.

    Args:
        trainer: settings of the trainer, whose callbacks and plugins are instances.
        run_callbacks: those of every run.
        named: those of the section ``callbacks``.
        title: title of the default progress bar.
    """
    given = as_list(trainer.callbacks)
    kinds = {type(callback) for callback in given}
    defaults = [callback for callback in named if callback and type(callback) not in kinds]
    if trainer.enable_checkpointing is False:
        defaults = [callback for callback in defaults if not isinstance(callback, Checkpoint)]
    trainer.callbacks = [*run_callbacks, *defaults, *given]
    if trainer.enable_checkpointing is not False:  # true would make Lightning add its own
        trainer.enable_checkpointing = any(isinstance(c, Checkpoint) for c in trainer.callbacks)
    if not any(isinstance(callback, ProgressBar) for callback in given):
        shown = trainer.enable_progress_bar is not False and sys.stderr.isatty()
        trainer.enable_progress_bar = shown
        trainer.callbacks += [StepBar(title)] if shown else []
    plugins = as_list(trainer.plugins)
    if any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        raise UserError(
            "trainer.plugins cannot contain a CheckpointIO: fit writes checkpoints itself, each "
            "complete or not at all, and with a model file beside it"
        )
    trainer.plugins = [*plugins, AtomicCheckpointIO()]
