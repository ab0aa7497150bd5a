"""One training at a time in a run's folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from filelock import FileLock, Timeout
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.errors import UserError
from nanogpt.notices import notice
from nanogpt.training.resume import Start

CANNOT_LOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # some file systems


@contextmanager
def held(trainer: L.Trainer, start: Start | None) -> Iterator[None]:
    """Hold the folder of a run while it is trained, if it has one.

    Raises:
        UserError: if somebody else does, or has gone on with the run since its checkpoint was read.
    """
    if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
        yield
        return
    with claimed(Path(trainer.logger.log_dir)):
        if start and start.checkpoint.stat().st_mtime_ns != start.written:
            raise UserError(f"{start.checkpoint} has been written anew meanwhile: run this again")
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, so that nobody else trains in it; the end of the process lets it go.

    Raises:
        UserError: if another training does hold it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another command trains in {folder}: wait for it, or stop it") from error
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        notice(f"{folder} cannot be locked here: let no other command train in it")
    try:
        yield
    finally:
        lock.release()
