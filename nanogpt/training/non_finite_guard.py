"""Stops a run whose loss, gradients or weights are not finite, and names the step and batch."""

import math
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.runs import Run
from nanogpt.text.batches import batch_offsets

ADVICE = "lower --model.learning_rate, or clip gradients with --trainer.gradient_clip_val 1"


class NonFiniteGuard:
    """Checks the loss of every micro-batch: at once on a CPU, later on a GPU.

    Reading a loss would make the CPU wait for the GPU, so the GPU counts the finite losses, and
    the count is read by ``check``.
    """

    def __init__(self) -> None:
        self.first_step = self.n_losses = 0
        self.all_finite: Tensor | None = None  # bool scalar
        self.n_finite: Tensor | None = None  # the number of losses before the first non-finite one

    def add(self, model: L.LightningModule, loss: Tensor) -> None:
        """Add the loss of a micro-batch; on a CPU, raise a ``UserError`` if it is not finite."""
        if is_on_cpu(loss):
            if not math.isfinite(loss.item()):
                raise non_finite_error(model, model.trainer.global_step)
            return
        finite = torch.isfinite(loss.detach())
        if self.all_finite is None or self.n_finite is None:
            self.first_step = model.trainer.global_step
            self.all_finite, self.n_finite = finite, finite.int()
        else:
            self.all_finite = self.all_finite & finite
            self.n_finite = self.n_finite + self.all_finite
        self.n_losses += 1

    def check(self, model: L.LightningModule) -> None:
        """Wait for the GPU and raise a ``UserError`` if any loss so far is not finite."""
        if self.n_finite is not None and (n_finite := int(self.n_finite.item())) < self.n_losses:
            n_steps = n_finite // model.trainer.accumulate_grad_batches
            raise non_finite_error(model, self.first_step + n_steps)


def is_on_cpu(loss: Tensor) -> bool:
    """Return whether a loss can be read without waiting for a device."""
    return loss.device.type == "cpu"


def check_finite(trainer: L.Trainer) -> None:
    """Raise a ``UserError`` if any weight or value of the optimizer state is not finite."""
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    tensors += trainer.lightning_module.parameters()
    device = trainer.strategy.root_device
    if not torch.stack([torch.isfinite(t).all().to(device) for t in tensors]).all():
        raise non_finite_error(trainer.lightning_module, trainer.global_step - 1, "result")


def non_finite_error(model: L.LightningModule, step: int, what: str = "") -> UserError:
    """Build the error for a step, counted from 0, with a non-finite value.

    By default that is the loss, or the gradient of the step before if the weights are not finite.
    """
    trainer, data = model.trainer, model.trainer.datamodule  # type: ignore[attr-defined]
    if not what:
        what = "loss"
        if step and not all(torch.isfinite(weight).all() for weight in model.parameters()):
            if trainer.global_step > step:  # found later, on a GPU
                what = "loss, or the gradient before it,"
            else:
                step, what = step - 1, "gradient"
    offsets = batch_offsets(data.draw, step).tolist()
    return UserError(
        f"the {what} of step {step + 1} is not finite: {ADVICE}; {last_checkpoint(trainer)}; the "
        f"windows of that step start at {', '.join(map(str, offsets))} of the train split"
    )


def last_checkpoint(trainer: L.Trainer) -> str:
    """Describe the last checkpoint of a run, which has only finite values, for a message."""
    run = Run(Path(trainer.log_dir)) if trainer.logger and trainer.log_dir else None
    checkpoint = run.checkpoint("last") if run else None
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
