"""Finds runs and their checkpoints, and an intact checkpoint where one is damaged."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from nanogpt.errors import UserError
from nanogpt.notices import notice, program

LOGS = Path("lightning_logs")

CheckpointName = Literal["best", "last"]
Content = TypeVar("Content")


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
    """Return the run with the highest number that has a checkpoint.

    Raises:
        UserError: if there is none.
    """
    folders = [f for f in LOGS.glob("version_*") if re.fullmatch(r"version_\d+", f.name)]
    for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("version_")), reverse=True):
        if Run(folder).checkpoint():
            return Run(folder)
    raise UserError(
        f"no run with a checkpoint in {LOGS}: train one first, for example with "
        f"`{program()} fit --config quickstart`, or pass one to --ckpt_path"
    )


def find_checkpoint(ckpt_path: str = "best", of_folder: CheckpointName = "best") -> Path:
    """Return the path of a checkpoint.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        of_folder: which checkpoint of a run folder to return.

    Raises:
        UserError: if there is no such checkpoint.
    """
    if ckpt_path in ("best", "last"):
        found = newest_run().checkpoint("best" if ckpt_path == "best" else "last")
        assert found is not None
        return found
    path = Path(ckpt_path)
    try:
        if path.is_dir() and (found := Run(path).checkpoint(of_folder)):
            return found
        if path.is_file():
            return path
    except OSError:  # not a valid file name
        pass
    raise UserError(
        f"no checkpoint at {ckpt_path!r}: --ckpt_path takes a .ckpt file, a run folder, or best or "
        "last (of the newest run)"
    )


def read_with_fallback(
    read: Callable[[Path], Content],
    ckpt_path: str = "best",
    of_folder: CheckpointName = "best",
) -> Content:
    """Read a checkpoint or, if it is damaged, the other one of its run.

    There is no fallback for a checkpoint given by its file name.

    Args:
        read: reads a file, and raises ``UserError`` if it is damaged.
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        of_folder: which checkpoint of a run folder to read.

    Raises:
        UserError: if there is no such checkpoint, or none that can be read.
    """
    path = find_checkpoint(ckpt_path, of_folder)
    try:
        return read(path)
    except UserError as error:
        other = path.with_name("last.ckpt" if path.name == "best.ckpt" else "best.ckpt")
        if path == Path(ckpt_path) or not other.is_file():
            raise
        try:
            content = read(other)
        except UserError:
            raise UserError(
                f"neither {path} nor {other.name} in the same folder can be read: pass another "
                "checkpoint to --ckpt_path, or train again"
            ) from error
        notice(f"{path} is damaged: using {other} instead")
        return content


def run_of(checkpoint: Path) -> Run | None:
    """Return the run whose folder contains a checkpoint, if any."""
    run = Run(checkpoint.resolve().parent.parent)
    return run if run.config.is_file() else None
