"""Stops a run whose loss, gradients or weights are not finite, and names the step and batch."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.text.batches import batch_offsets
from nanogpt.training.callbacks.checkpoints import last_checkpoint
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.evaluations import is_evaluation

ADVICE = "lower --model.learning_rate, or clip gradients with --trainer.gradient_clip_val 1"


class NonFiniteGuard(Callback):
    """Checks the loss of every micro-batch: at once on a CPU, later on a GPU.

    Reading a loss would make the CPU wait for the GPU, so the GPU counts the finite losses, and
    the count is read at the logging interval and after evaluations.
    """

    def __init__(self) -> None:
        self.first_step = self.n_losses = self.step = 0
        self.all_finite: Tensor | None = None  # bool scalar
        self.n_finite: Tensor | None = None  # the number of losses before the first non-finite one

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        """Check the loss of a micro-batch on a CPU, or count it if it is finite."""
        if is_on_cpu(loss):
            finite_everywhere = math.isfinite(loss.item())
            if trainer.world_size > 1:  # all processes stop together
                finite_everywhere = trainer.strategy.reduce_boolean_decision(finite_everywhere)
            if not finite_everywhere:
                raise non_finite_error(pl_module, trainer.global_step)
            return
        finite = torch.isfinite(loss.detach())
        if self.all_finite is None or self.n_finite is None:
            self.first_step = trainer.global_step
            self.all_finite, self.n_finite = finite, finite.int()
        else:
            self.all_finite = self.all_finite & finite
            self.n_finite = self.n_finite + self.all_finite
        self.n_losses += 1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        """Check the losses so far when they are logged, which waits for a GPU anyway."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            if self.step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
                self.check(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the losses so far, and the val loss."""
        if not is_evaluation(trainer):
            return
        self.check(pl_module)
        val_loss = trainer.callback_metrics.get("loss/val", torch.tensor(0.0)).item()
        if not math.isfinite(val_loss):
            raise UserError(
                f"the val loss is {val_loss} at step {trainer.global_step}, training has "
                f"diverged: {ADVICE}; {last_checkpoint(trainer)}"
            )

    def check(self, model: L.LightningModule) -> None:
        """Wait for the GPU and raise a ``UserError`` if any loss so far is not finite."""
        if self.n_finite is None:
            return
        n_finite, trainer = self.n_finite, model.trainer
        if trainer.world_size > 1:
            n_finite = trainer.strategy.reduce(n_finite.clone(), reduce_op="min")
        if (n := int(n_finite.item())) < self.n_losses:
            n_steps = n // trainer.accumulate_grad_batches
            raise non_finite_error(model, self.first_step + n_steps)


def is_on_cpu(loss: Tensor) -> bool:
    """Return whether a loss can be read without waiting for a device."""
    return loss.device.type == "cpu"


def non_finite_error(model: L.LightningModule, step: int) -> UserError:
    """Build the error for a step, counted from 0, whose loss or gradient is not finite."""
    trainer = model.trainer
    what = "loss"
    if step and not all(torch.isfinite(weight).all() for weight in model.parameters()):
        if trainer.global_step > step:  # found later, on a GPU
            what = "loss, or the gradient before it,"
        else:
            step, what = step - 1, "gradient"
    message = f"the {what} of step {step + 1} is not finite: {ADVICE}; {last_checkpoint(trainer)}"
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, CharDataModule):
        offsets = ", ".join(map(str, batch_offsets(data.draw, step).tolist()))
        message += f"; the windows of that step start at {offsets} of the train split"
    return UserError(message)
