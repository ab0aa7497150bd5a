"""Whether a run is still sound: its loss, its weights, and which batch made it sick."""

import math
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.runs import Run
from nanogpt.text.batches import batch_offsets

ADVICE = "lower --model.learning_rate, or clip with --trainer.gradient_clip_val 1"


class Watch:
    """Looks at the loss of every micro-batch: at once on a CPU, later on a GPU.

    Looking would make a GPU wait; it counts the finite losses itself, until somebody asks.
    """

    def __init__(self) -> None:
        self.first_step = self.seen = 0
        self.sound: Tensor | None = None  # a flag: no loss so far was not finite
        self.good: Tensor | None = None  # how many there were before the first that was not

    def see(self, model: L.LightningModule, loss: Tensor) -> None:
        """Take note of a loss.

        Raises:
            UserError: on a CPU, if it is not finite.
        """
        if waits_for_nothing(loss):
            if not math.isfinite(loss.item()):
                raise sick(model, model.trainer.global_step)
            return
        finite = torch.isfinite(loss.detach())
        if self.sound is None or self.good is None:
            self.first_step, self.sound, self.good = model.trainer.global_step, finite, finite.int()
        else:
            self.sound = self.sound & finite
            self.good = self.good + self.sound
        self.seen += 1

    def check(self, model: L.LightningModule) -> None:
        """Wait for the GPU and ask for its count.

        Raises:
            UserError: if a loss was not finite.
        """
        if self.good is not None and (good := int(self.good.item())) < self.seen:
            raise sick(model, self.first_step + good // model.trainer.accumulate_grad_batches)


def waits_for_nothing(loss: Tensor) -> bool:
    """Whether a value can be looked at without waiting for a device."""
    return loss.device.type == "cpu"


def check_finite(trainer: L.Trainer) -> None:
    """Check that weights and optimizer state can be saved.

    Raises:
        UserError: if any number among them is not finite.
    """
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    tensors += trainer.lightning_module.parameters()
    device = trainer.strategy.root_device
    if not torch.stack([torch.isfinite(t).all().to(device) for t in tensors]).all():
        raise sick(trainer.lightning_module, trainer.global_step - 1, "result")


def sick(model: L.LightningModule, step: int, what: str = "") -> UserError:
    """Return the error of a run in which something of a step (from 0) is not finite.

    By default that is the loss; or, where the weights were not finite any more by then, the
    gradient of the step before.
    """
    trainer, data = model.trainer, model.trainer.datamodule  # type: ignore[attr-defined]
    if not what:
        what = "loss"
        if step and not all(torch.isfinite(weight).all() for weight in model.parameters()):
            if trainer.global_step > step:  # noticed later, on a GPU
                what = "loss, or the gradient before it,"
            else:
                step, what = step - 1, "gradient"
    offsets = batch_offsets(data.draw, step).tolist()
    return UserError(
        f"the {what} of step {step + 1} is not finite: {ADVICE}; {kept(trainer)}; the windows of "
        f"that step begin at {', '.join(map(str, offsets))} of the train split"
    )


def kept(trainer: L.Trainer) -> str:
    """Say which checkpoint of this run is good."""
    run = Run(Path(trainer.log_dir)) if trainer.logger and trainer.log_dir else None
    checkpoint = run.checkpoint("last") if run else None
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint is kept"
