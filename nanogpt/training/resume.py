"""Bit-exact resume: where a run continues, and the state that is derived.

A checkpoint holds a completed optimizer step. The next windows, the counters of Lightning's loops
and the learning rate follow from the number of that step and the settings, so they are computed
here instead of restored. ``RunState`` in ``callbacks/`` calls these functions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from torch import nn

from nanogpt.errors import UserError
from nanogpt.runs import Run, run_of
from nanogpt.training.callbacks.checkpoints import resume_command
from nanogpt.training.optimizer import build_optimizer, is_fused, peak_learning_rates
from nanogpt.training.schedule import is_scheduled, learning_rate_factor
from nanogpt.training.training_state import TrainingState

RUN_STATE_KEY = "RunState"  # of the callback, in a checkpoint


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run resumes, without its tensors."""

    path: Path
    run: Run | None  # whose folder contains the checkpoint
    step: int  # number of completed optimizer steps
    hparams: dict[str, Any]  # of the LightningModule
    corpus: dict[str, str | None]  # state of the data module
    modified_ns: int  # modification time of the file when it was read

    @property
    def folder(self) -> Path | None:
        """The folder of the run, in which it resumes; None to start a new folder."""
        return self.run.folder if self.run else None

    @property
    def purge_step(self) -> int:
        """The first step after the checkpoint: TensorBoard discards the events from it."""
        return self.step + 1

    def check_unchanged(self) -> None:
        """Raise a ``UserError`` if another command has saved to the file since it was read."""
        if self.path.stat().st_mtime_ns != self.modified_ns:
            raise UserError(f"{self.path} was changed by another command: repeat this command")


def find_resume_point(
    checkpoint: TrainingState, modified_ns: int, trainer: Namespace
) -> ResumePoint:
    """Return the resume point of a checkpoint, given the settings of the trainer.

    Raises:
        UserError: if the run has reached its last step.
    """
    path, step, last = checkpoint.path, checkpoint.step, trainer.max_steps
    run = run_of(path)
    if run and run.folder.is_relative_to(Path.cwd()):
        run = Run(run.folder.relative_to(Path.cwd()))
    interval = evaluation_interval(trainer.val_check_interval, trainer.accumulate_grad_batches)
    due = trainer.limit_val_batches != 0 and evaluation_due(checkpoint.content, interval, last)
    if 0 <= last <= step and not (due and step == last) and not trainer.fast_dev_run:
        more = "--trainer.max_steps MORE"
        more = f"`{resume_command(run)} {more}`" if run else more
        raise UserError(f"{path} is at step {step} of {last} already: resume with {more}")
    return ResumePoint(path, run, step, checkpoint.settings, checkpoint.corpus, modified_ns)


def evaluation_due(content: Mapping[str, Any], interval: int, max_steps: int) -> bool:
    """Return whether a checkpoint's step has to be evaluated, and has not been."""
    step, saved = content["global_step"], content["callbacks"].get(RUN_STATE_KEY, {})
    recorded = [losses[0] for losses in saved.get("history", ())]
    return (step % interval == 0 or step == max_steps) and step not in recorded


def evaluation_interval(val_check_interval: float, accumulate_grad_batches: int) -> int:
    """Return the number of optimizer steps between evaluations; Lightning counts batches."""
    return int(val_check_interval) // accumulate_grad_batches


def override_optimizer_settings(
    content: dict[str, Any], trainer: L.Trainer, net: nn.Module, hparams: Mapping[str, Any]
) -> None:
    """Replace the optimizer settings in a checkpoint's content by those of a new optimizer.

    This is done before Lightning loads the optimizer and the scheduler from it.
    """
    step, peaks = content["global_step"], peak_learning_rates(hparams)
    factor = learning_rate_factor(
        step, trainer.max_steps, hparams["schedule"], hparams["warmup_steps"]
    )
    rates = [peak * factor for peak in peaks]
    groups = build_optimizer(net, hparams, is_fused(trainer)).state_dict()["param_groups"]
    for group, peak, rate in zip(groups, peaks, rates, strict=True):
        group |= {"lr": rate} | ({"initial_lr": peak} if is_scheduled(hparams) else {})
    content["optimizer_states"][0]["param_groups"] = groups
    scheduler = {"base_lrs": peaks, "last_epoch": step, "_step_count": step + 1}
    scheduler |= {"_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    content["lr_schedulers"] = [scheduler] if is_scheduled(hparams) else []
