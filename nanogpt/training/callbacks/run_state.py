"""Keeps what a run needs to resume exactly where it stopped."""

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nanogpt.insight.reference import Losses
from nanogpt.runs import Run
from nanogpt.training import resume
from nanogpt.training.evaluations import is_evaluation
from nanogpt.training.lightning_internals import let_any_step_be_the_last, set_loop_counters
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.training_state import read_training_state


class RunState(Callback):
    """Records the evaluations of a run, and continues them and the loop counters on resume.

    The evaluation of step 0, and one that is due when a run resumes, are Lightning's sanity check
    over the whole of both loaders; the latter is run as a normal evaluation.
    """

    def __init__(self) -> None:
        self.history: list[Losses] = []
        self.fit_start = time.monotonic()
        self.earlier_seconds = 0.0  # the duration of earlier fits of this run
        self.seconds = 0.0  # of all fits, when a batch or an evaluation last ended
        self.first_step = self.step = 0  # where this fit started and ended

    def measure(self) -> None:
        """Measure the duration of all fits so far; all checkpoints of a step have the same."""
        self.seconds = self.earlier_seconds + time.monotonic() - self.fit_start

    def state_dict(self) -> dict[str, Any]:
        """Return the evaluations and the duration so far."""
        history = [[losses.step, losses.train, losses.val] for losses in self.history]
        return {"history": history, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the evaluations and the duration."""
        self.history = [Losses(*losses) for losses in state_dict["history"]]
        self.earlier_seconds = self.seconds = state_dict["seconds"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out the state of Lightning's SpikeDetection, which it fails to restore."""
        checkpoint["callbacks"].pop("SpikeDetection", None)

    def read(self, run: Run) -> None:
        """Take the state from a run's last checkpoint: spawned processes have a copy of this."""
        if path := run.checkpoint("last"):
            content = read_training_state(path).content
            self.load_state_dict(content["callbacks"][resume.RUN_STATE_KEY])
            self.step = content["global_step"]

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the counters and the optimizer's settings, before Lightning restores the rest."""
        if trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, LanguageModel)
        checkpoint.pop("loops", None)  # computed here, for any number of micro-batches
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # counts from 0
        set_loop_counters(trainer, checkpoint["global_step"])
        resume.override_optimizer_settings(checkpoint, trainer, pl_module.net, pl_module.hparams)
        interval = resume.evaluation_interval(
            trainer.val_check_interval, trainer.accumulate_grad_batches
        )
        due = resume.evaluation_due(checkpoint, interval, trainer.max_steps)
        trainer.num_sanity_val_steps = math.inf if due else 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the timer."""
        self.fit_start, self.step = time.monotonic(), trainer.global_step
        let_any_step_be_the_last(trainer)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let an evaluation that is due when a run resumes be a normal one, for all callbacks."""
        if trainer.global_step:
            trainer.validating = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the first step."""
        self.first_step = trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        """Measure the duration."""
        self.measure()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the last step."""
        self.step = trainer.global_step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the losses and the duration."""
        self.measure()
        metrics, step = trainer.callback_metrics, trainer.global_step
        if not is_evaluation(trainer) or "loss/val" not in metrics:
            return
        if not self.history or self.history[-1].step < step:
            train = metrics.get("loss/train", torch.tensor(math.nan))  # there is no such loader
            self.history.append(Losses(step, train.item(), metrics["loss/val"].item()))
