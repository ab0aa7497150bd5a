"""Bit-exact resume: where a run continues, its random state, and the state that is derived.

A checkpoint holds a completed optimizer step. The next windows, the counters of Lightning's loops
and the learning rate follow from the number of that step and the settings, so they are computed
here, and the loop state that Lightning saves is left out. ``RunRecorder`` in ``callbacks.py`` calls
these functions when it saves and restores a run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import Checkpoint
from nanogpt.runs import Run, run_of
from nanogpt.training.checkpoint_saver import resume_command
from nanogpt.training.optimizer import peak_learning_rates
from nanogpt.training.schedule import is_scheduled, learning_rate_factor

RUN_STATE_KEY = "run"  # in a checkpoint: the state of the RunRecorder


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint from which a run resumes, without its tensors."""

    path: Path
    run: Run | None  # whose folder contains the checkpoint
    step: int  # number of completed optimizer steps
    evaluation_due: bool  # whether the step has yet to be evaluated
    hparams: dict[str, Any]  # of the LightningModule
    corpus: dict[str, str | None]  # state of the data module
    modified_ns: int  # modification time of the file when it was read

    def logger(self) -> TensorBoardLogger | None:
        """Return a logger that continues the curves of the run, if there is one.

        TensorBoard discards the events after the checkpoint, and those of its step if that will be
        evaluated again.
        """
        if not self.run:
            return None
        folder, purge = self.run.folder, self.step + (not self.evaluation_due)
        place = (str(folder.parent.parent), folder.parent.name, folder.name)
        return TensorBoardLogger(*place, default_hp_metric=False, flush_secs=10, purge_step=purge)

    def check_unchanged(self) -> None:
        """Raise a ``UserError`` if another command has saved to the file since it was read."""
        if self.path.stat().st_mtime_ns != self.modified_ns:
            raise UserError(f"{self.path} was changed by another command: repeat this command")


def find_resume_point(checkpoint: Checkpoint, modified_ns: int, trainer: Namespace) -> ResumePoint:
    """Return the resume point of a checkpoint, given the settings of the trainer.

    Raises:
        UserError: if the run has reached its last step.
    """
    path, step, last = checkpoint.path, checkpoint.step, trainer.max_steps
    run = run_of(path)
    if run and run.folder.is_relative_to(Path.cwd()):
        run = Run(run.folder.relative_to(Path.cwd()))
    due = trainer.limit_val_batches != 0
    due = due and evaluation_due(checkpoint.content, trainer.val_check_interval, last)
    if 0 <= last <= step and not (due and step == last):
        more = "--trainer.max_steps MORE"
        more = f"`{resume_command(run)} {more}`" if run else more
        raise UserError(f"{path} is at step {step} of {last} already: resume with {more}")
    return ResumePoint(path, run, step, due, checkpoint.settings, checkpoint.corpus, modified_ns)


def evaluation_due(content: Mapping[str, Any], interval: int, max_steps: int) -> bool:
    """Return whether a checkpoint's step has to be evaluated, and has not been."""
    step = content["global_step"]
    recorded = [losses[0] for losses in content.get(RUN_STATE_KEY, {}).get("history", ())]
    return (step % interval == 0 or step == max_steps) and step not in recorded


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the global random generators of the CPU and of the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore a state of the generators; one that is missing, as of another device, is skipped."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"].cpu())


def set_loop_counters(trainer: L.Trainer, step: int) -> None:
    """Set the counters of Lightning's loops to the end of an optimizer step."""
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    stages = ("ready", "started", "processed", "completed")
    loop.batch_progress.total.load_state_dict(dict.fromkeys(stages, batches))
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.on_load_checkpoint({"_batches_that_stepped": step})


def override_optimizer_settings(
    content: dict[str, Any], trainer: L.Trainer, hparams: Mapping[str, Any]
) -> None:
    """Replace the optimizer settings in a checkpoint's content by the current hyperparameters.

    This is done before Lightning loads the optimizer and the scheduler from it.
    """
    step, peaks = content["global_step"], peak_learning_rates(hparams)
    factor = learning_rate_factor(
        step, trainer.max_steps, hparams["schedule"], hparams["warmup_steps"]
    )
    rates = [peak * factor for peak in peaks]
    groups = content["optimizer_states"][0]["param_groups"]
    for group, peak, rate in zip(groups, peaks, rates, strict=True):
        group.pop("initial_lr", None)
        group |= {"lr": rate} | ({"initial_lr": peak} if is_scheduled(hparams) else {})
        group["weight_decay"] = hparams["weight_decay"]
        if "betas" in group:  # AdamW
            group["betas"] = tuple(hparams["betas"])
            group["fused"] = trainer.precision != "16-mixed"
    scheduler = {"base_lrs": peaks, "last_epoch": step, "_step_count": step + 1}
    scheduler |= {"_last_lr": rates, "lr_lambdas": [None] * len(rates)}
    content["lr_schedulers"] = [scheduler] if is_scheduled(hparams) else []
