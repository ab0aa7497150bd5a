"""Files that are there whole, or not at all."""

import os
import re
import shutil
import tempfile
from pathlib import Path

PREFIX = ".partial-"


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside its target, flush it, and only then give it its name.

    A full disk or a kill leaves what was there before.

    Raises:
        OSError: if it cannot be written; ``filename`` is the target's, and a note says how much
            room it takes.
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


def sweep(folder: Path) -> None:
    """Remove what writing left anywhere in a folder when the process was killed."""
    for partial in folder.rglob(f"{PREFIX}*"):
        if re.fullmatch(re.escape(PREFIX) + r"\w{8}", partial.name) and partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
