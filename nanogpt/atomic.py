"""Atomic writes: after a crash, a file has its old or its new content, never a part of it."""

import os
import re
import shutil
import tempfile
from pathlib import Path

PREFIX = ".partial-"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a temporary file in the same folder, flush it to disk, and rename it to ``path``.

    If the process is killed, or the disk is full, the previous file remains. An OSError names
    ``path``, with the size in a note.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PREFIX) as folder:
            partial = Path(folder) / path.name
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except OSError as error:
        failed = OSError(error.errno, error.strerror, str(path))
        failed.add_note(f"which takes {memoryview(content).nbytes / 1e6:,.1f} MB")
        raise failed from error


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and its subfolders."""
    for partial in folder.rglob(f"{PREFIX}*"):
        if re.fullmatch(re.escape(PREFIX) + r"\w{8}", partial.name) and partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
