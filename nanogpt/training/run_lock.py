"""A lock that lets only one command at a time train in a run folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nanogpt.errors import UserError
from nanogpt.notices import notice

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # some file systems have no locks


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run folder; raise a ``UserError`` if another command has locked it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another command is training in {folder}: wait for it, or stop it"
        ) from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        notice(f"could not lock {folder}: do not train in it from another process")
    try:
        yield
    finally:
        lock.release()
