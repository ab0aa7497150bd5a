"""Finds runs and their checkpoints."""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanogpt.errors import UserError
from nanogpt.notices import program

LOGS = Path("lightning_logs")

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Run:
    """A run folder, such as ``lightning_logs/version_0``."""

    folder: Path

    @property
    def config(self) -> Path:
        """The file with all settings of the run."""
        return self.folder / "config.yaml"

    def checkpoint(self, which: CheckpointName = "best") -> Path | None:
        """Return the ``best`` or ``last`` checkpoint, or the other one if it is missing."""
        for name in (which, "best", "last"):
            if (path := self.folder / "checkpoints" / f"{name}.ckpt").is_file():
                return path
        return None


def newest_run() -> Run:
    """Return the run with the highest number that has a checkpoint, or raise UserError."""
    folders = [f for f in LOGS.glob("version_*") if re.fullmatch(r"version_\d+", f.name)]
    for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("version_")), reverse=True):
        if Run(folder).checkpoint():
            return Run(folder)
    raise UserError(
        f"no run with a checkpoint in {LOGS}: train one first, for example with "
        f"`{program()} fit --config quickstart`, or pass one to --ckpt_path"
    )


def find_checkpoint(ckpt_path: str = "best", of_folder: CheckpointName = "best") -> Path:
    """Return the path of a checkpoint; raise UserError if it does not exist.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        of_folder: which checkpoint of a run folder to return.
    """
    if ckpt_path in ("best", "last"):
        found = newest_run().checkpoint("best" if ckpt_path == "best" else "last")
        assert found is not None
        return found
    path = Path(ckpt_path)
    with suppress(OSError):  # not a valid file name
        found = path if path.is_file() else Run(path).checkpoint(of_folder)
        if found:
            return found
    raise UserError(
        f"no checkpoint at {ckpt_path!r}: --ckpt_path takes a .ckpt file, a run folder, or best or "
        "last (of the newest run)"
    )


def run_of(checkpoint: Path) -> Run | None:
    """Return the run whose folder contains a checkpoint, if any."""
    run = Run(checkpoint.resolve().parent.parent)
    return run if run.config.is_file() else None


def started_in(run: Run | None) -> Path | None:
    """Return the folder that contains the ``lightning_logs`` of a run, where it was started."""
    return run.folder.resolve().parent.parent if run else None
