"""Refuses callbacks of Lightning that cannot work here, before anything is written."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from pydoc import locate
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch import callbacks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from nanogpt.errors import UserError
from nanogpt.insight.ngrams import NAMES

METRICS = [f"{kind}/{split}" for kind in ("loss", "perplexity") for split in ("val", "train")]
METRICS += ["bits_per_character/val", "bits_per_character/train", "loss/batch", "learning_rate"]
METRICS += ["characters_per_second"]
METRICS += [f"ngrams/{name}_{kind}" for name in NAMES.values() for kind in ("entropy", "held_out")]
SHARDING = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
REFUSED: dict[Any, str] = {
    callbacks.BatchSizeFinder: "it changes the batch size after the settings are recorded: set "
    "--data.batch_size, or use lightning.pytorch.tuner.Tuner from Python",
    callbacks.LearningRateFinder: "it changes the learning rate after the settings are recorded: "
    "set --model.learning_rate, or use lightning.pytorch.tuner.Tuner from Python",
    callbacks.StochasticWeightAveraging: "it averages at the ends of epochs, and training is "
    "counted in steps: use WeightAveraging or EMAWeightAveraging",
    callbacks.GradientAccumulationScheduler: "it counts epochs, and training is counted in steps: "
    "use --trainer.accumulate_grad_batches",
    callbacks.ModelPruning: "it renames the weights, so that a checkpoint cannot be sampled or "
    "resumed: prune a trained model with torch.nn.utils.prune",
    callbacks.BackboneFinetuning: "the model has no part named backbone: write a subclass of "
    "BaseFinetuning",
    callbacks.BaseFinetuning: "it is abstract: give the class path of a subclass",
    callbacks.ProgressBar: "it is abstract: use TQDMProgressBar or RichProgressBar",
}


def check_classes(entries: Iterable[Any]) -> None:
    """Raise a ``UserError`` if the settings of a callback are of a class that cannot work here."""
    for entry in entries:
        kind = locate(entry.class_path) if isinstance(entry, Namespace) else None
        if reason := REFUSED.get(kind):
            raise UserError(f"{entry.class_path.rpartition('.')[2]} cannot be used: {reason}")


def check_callbacks(trainer: L.Trainer, resumes: bool) -> None:
    """Check the callbacks of a trainer for ``fit``.

    Raises:
        UserError: if one monitors a metric that is not logged, or has left a checkpoint that
            Lightning would resume from unasked; or if the strategy divides the model.
    """
    if isinstance(trainer.strategy, SHARDING):
        raise UserError(
            f"{type(trainer.strategy).__name__} cannot be used: samples and checkpoints need the "
            "whole model on each device; use --trainer.strategy ddp"
        )
    given: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    own = [c for c in given if not type(c).__module__.startswith(("lightning.", "nanogpt."))]
    for callback in given:
        name = type(callback).__name__
        if isinstance(callback, callbacks.OnExceptionCheckpoint) and not resumes:
            check_left_checkpoint(Path(callback.ckpt_path))
        monitor = getattr(callback, "monitor", None)
        if monitor in (None, *METRICS) or own or not getattr(callback, "strict", True):
            continue  # a callback of the user may log other metrics
        close = get_close_matches(str(monitor).replace("_", "/"), METRICS, 1, 0.4)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(METRICS)}"
        swapped = "/".join(reversed(str(monitor).split("_")))
        hint = f"did you mean {swapped}?" if swapped in METRICS else hint
        raise UserError(f"{name} monitors {monitor!r}, which is not logged; {hint}")


def check_left_checkpoint(path: Path) -> None:
    """Raise a ``UserError`` if a file is there that Lightning would resume from."""
    if path.is_file():
        raise UserError(
            f"{path} is left from a run that failed, and Lightning would resume from it: pass it "
            "to --ckpt_path, or move it away"
        )
