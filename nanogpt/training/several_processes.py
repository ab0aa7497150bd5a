"""What differs if a run has several processes: signals, and the exceptions of spawned ones."""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from nanogpt.errors import Interrupted, UserError
from nanogpt.processes import process_rank
from nanogpt.training.callbacks import GracefulStop
from nanogpt.training.callbacks.graceful_stop import SIGNALS
from nanogpt.training.lightning_internals import spawning_launcher
from nanogpt.training.log_filter import filter_logs
from nanogpt.training.run_lock import lock_folder


class RunsWithLocks(Protocol):
    """A ``LightningCLI`` that holds locks until it ends."""

    trainer: L.Trainer  # once it is built
    locks: ExitStack


STOPPED = re.compile(r"stopped by (Ctrl-C|SIG\w+) .*")


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
        name = stopped[1]
        number = signal.SIGINT if name == "Ctrl-C" else signal.Signals[name]
        return Interrupted(line.strip(), 128 + number)
    return None


def has_trained(command: RunsWithLocks) -> bool:
    """Return whether a run has made a step, or may have in spawned processes."""
    trainer: L.Trainer | None = getattr(command, "trainer", None)
    return bool(trainer and (trainer.global_step or spawning_launcher(trainer)))


def lock_run(command: RunsWithLocks, folder: Path) -> None:
    """Lock the folder of a run until the command ends, unless another process of the run does."""
    if not process_rank():
        command.locks.enter_context(lock_folder(folder, partial(has_trained, command)))


@contextmanager
def early_signals(trainer: L.Trainer) -> Iterator[None]:
    """Handle signals before the processes of a run have found each other."""
    in_main = threading.current_thread() is threading.main_thread()
    if trainer.world_size == 1 or process_rank() or not in_main:
        yield
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    launcher = spawning_launcher(trainer)
    # no warning for each process that is ended
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GracefulStop):
            if launcher:
                callback.forward_signals(launcher.kill)
            else:
                callback.install_handlers()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
