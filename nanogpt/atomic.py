"""Atomic writes: after a crash, a file has its old or its new content, never a part of it."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PREFIX = ".partial-"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that a killed process, or a full disk, leaves the previous one.

    An OSError names ``path``, with the size in a note.
    """
    with _replaced(path, memoryview(content).nbytes) as file:
        file.write(content)


def copy_atomically(source: Path, path: Path) -> None:
    """Copy a file in the same way."""
    with source.open("rb") as original, _replaced(path, source.stat().st_size) as file:
        shutil.copyfileobj(original, file, 2**20)


@contextmanager
def _replaced(path: Path, n_bytes: int) -> Iterator[BinaryIO]:
    """Yield a temporary file in the same folder; flush it to disk and rename it to ``path``."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PREFIX) as folder:
            partial = Path(folder) / path.name
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        failed = OSError(error.errno, error.strerror, str(path))
        failed.add_note(f"which takes {n_bytes / 1e6:,.1f} MB")
        raise failed from error


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and its subfolders."""
    for partial in folder.rglob(f"{PREFIX}*"):
        if re.fullmatch(re.escape(PREFIX) + r"\w{8}", partial.name) and partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
