"""What differs if a run has several processes: signals, and the exceptions of spawned ones."""

import re
import signal

import lightning as L

from nanogpt.errors import Interrupted, UserError
from nanogpt.processes import process_rank
from nanogpt.training.callbacks import GracefulStop
from nanogpt.training.lightning_internals import spawning_launcher

STOPPED = re.compile(r"stopped by (Ctrl-C|SIGTERM) .*")


def from_spawned(traceback: str) -> UserError | Interrupted | None:
    """Return the exception that a process has raised, given its traceback, if it is one of ours."""
    _, found, line = traceback.rpartition("\nnanogpt.errors.UserError: ")
    if found:
        return UserError(line.strip())
    _, found, line = traceback.rpartition("\nnanogpt.errors.Interrupted: ")
    if found and (stopped := STOPPED.match(line)):
        number = signal.SIGINT if stopped[1] == "Ctrl-C" else signal.SIGTERM
        return Interrupted(line.strip(), 128 + number)
    return None


def prepare_signals(trainer: L.Trainer) -> None:
    """Handle signals before the processes of a run have found each other."""
    if trainer.world_size == 1 or process_rank():
        return
    launcher = spawning_launcher(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GracefulStop):
            if launcher:
                callback.forward_signals(launcher.kill)
            else:
                callback.install_handlers()
