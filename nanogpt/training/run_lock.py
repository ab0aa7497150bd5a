"""A lock that lets only one command at a time train in a run folder."""

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nanogpt.errors import Interrupted, UserError
from nanogpt.notices import notice

UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)  # some file systems have no locks


class FolderLockedError(UserError):
    """Another command trains in the folder."""


@contextmanager
def lock_folder(folder: Path, is_used: Callable[[], bool]) -> Iterator[None]:
    """Lock a run folder; raise ``FolderLockedError`` if another command has locked it.

    If the folder is new and an exception ends the run before it is used, the folder is removed.

    Args:
        folder: the folder, which is created if it is missing.
        is_used: whether the run has made its first step.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderLockedError(
            f"another command is training in {folder}: wait for it, or stop it"
        ) from error
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        notice(f"could not lock {folder}: do not train in it from another process")
    is_unused = False
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        is_unused = not is_used() and not any(folder.rglob("*.ckpt"))
        raise
    finally:
        lock.release()
        if is_unused:
            remove_folders(new_folders)


def remove_folders(folders: list[Path]) -> None:
    """Remove a folder, and those that contained only it; the innermost is the first."""
    for folder in folders[:1]:
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # another run is in it
        for folder in folders[1:]:
            folder.rmdir()
