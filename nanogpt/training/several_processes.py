"""What differs if a run has several processes: signals, and the exceptions of spawned ones."""

import logging
import re
import signal
from typing import Any

import lightning as L

from nanogpt.errors import Interrupted, UserError
from nanogpt.processes import process_rank
from nanogpt.training.callbacks import GracefulStop
from nanogpt.training.lightning_internals import spawning_launcher
from nanogpt.training.log_filter import filter_logs

STOPPED = re.compile(r"stopped by (Ctrl-C|SIGTERM) .*")


class SpawnedLogs(L.Callback):
    """Filters the logs of a process that ``ddp_spawn`` has started, which gets a copy of this."""

    def __reduce__(self) -> Any:
        return (filter_spawned_logs, ())


def filter_spawned_logs() -> SpawnedLogs:
    """Filter the logs of this process, when it unpickles its copy of the callbacks."""
    filter_logs()
    return SpawnedLogs()


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


def has_trained(trainer: L.Trainer) -> bool:
    """Return whether a run has made a step, or may have in spawned processes."""
    return trainer.global_step > 0 or spawning_launcher(trainer) is not None


def prepare_signals(trainer: L.Trainer) -> None:
    """Handle signals before the processes of a run have found each other."""
    if trainer.world_size == 1 or process_rank():
        return
    launcher = spawning_launcher(trainer)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it ends processes
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GracefulStop):
            if launcher:
                callback.forward_signals(launcher.kill)
            else:
                callback.install_handlers()
