"""Stops a run between two steps on Ctrl-C, SIGTERM or SIGHUP."""

import multiprocessing
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from nanogpt.errors import Interrupted
from nanogpt.notices import notice
from nanogpt.runs import Run
from nanogpt.training.callbacks.checkpoints import LastCheckpoint, last_checkpoint, resume_command

SIGNALS = [signal.SIGINT, signal.SIGTERM]
SIGNALS += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # the terminal was closed


class GracefulStop(Callback):
    """Saves the step under way and ends the run on Ctrl-C, SIGTERM or SIGHUP.

    A second Ctrl-C stops at once.

    Lightning's own SIGTERM handler would stop between two micro-batches of a step. SIGUSR1, its
    signal for requeueing SLURM jobs, is left to Lightning.
    """

    def __init__(self) -> None:
        self.requested_by: signal.Signals | None = None

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers before the first evaluation."""
        self.install_handlers()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Install the signal handlers before the first step."""
        self.install_handlers()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop before a step if that is requested."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.stop_if_requested(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Abort an evaluation if a stop is requested; it will be due when the run resumes."""
        self.stop_if_requested(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """After a second Ctrl-C, name the last checkpoint."""
        if isinstance(exception, KeyboardInterrupt):
            notice(f"Ctrl-C at step {trainer.global_step}; {last_checkpoint(trainer)}")

    def install_handlers(self) -> None:
        """Replace the handlers of the signals; Lightning restores the previous ones at the end."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # ignored under nohup
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_worker = multiprocessing.parent_process() is not None  # may get a signal twice
        if self.requested_by is not None and number == signal.SIGINT and not is_worker:
            raise KeyboardInterrupt
        self.requested_by = self.requested_by or signal.Signals(number)

    def forward_signals(self, kill: Callable[[signal.Signals], None]) -> None:
        """Pass signals on to the processes that this one spawns, which save the step."""

        def forward(number: int, frame: FrameType | None) -> None:
            if self.requested_by is not None:
                kill(signal.SIGKILL)
                raise KeyboardInterrupt
            self.requested_by = signal.Signals(number)
            kill(self.requested_by)

        for number in SIGNALS:
            signal.signal(number, forward)

    def stop_if_requested(self, trainer: L.Trainer) -> None:
        """Stop all processes together if a signal has reached any of them."""
        number = int(self.requested_by or 0)
        if trainer.world_size > 1:
            device, interval = trainer.strategy.root_device, trainer.log_every_n_steps  # type: ignore[attr-defined]
            if device.type != "cpu" and trainer.global_step % interval:
                return  # asking the others would wait for the GPU
            received = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        if number:
            stop_run(trainer, signal.Signals(number))


def stop_run(trainer: L.Trainer, requested_by: signal.Signals) -> NoReturn:
    """Save the current step and end the run.

    Raises:
        Interrupted: with the path of the checkpoint and the command to resume.
    """
    savers = [c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]
    path: Path | None = savers[0].save(trainer) if savers else None
    result = "no checkpoint has been saved"
    if path is not None:
        result = f"saved in {path}; resume with `{resume_command(Run(path.parent.parent))}`"
    name = "Ctrl-C" if requested_by == signal.SIGINT else requested_by.name
    line = f"stopped by {name} after step {trainer.global_step}: {result}"
    if not trainer.is_global_zero:
        raise SystemExit(0)  # another code would make Lightning kill the first process
    raise Interrupted(line, 128 + requested_by)
