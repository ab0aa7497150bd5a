"""Finds runs and their checkpoints under ``lightning_logs/``."""

import re
from dataclasses import dataclass
from pathlib import Path

from nanogpt.errors import UserError

LOGS = Path("lightning_logs")


@dataclass(frozen=True)
class Run:
    """A folder that training left: ``lightning_logs/version_N``."""

    folder: Path

    @property
    def config(self) -> Path:
        """The whole configuration of the run."""
        return self.folder / "config.yaml"

    def checkpoint(self, which: str = "best") -> Path | None:
        """The ``best`` or the ``last`` checkpoint, or the other one where that is missing."""
        for name in (which, "best", "last"):
            if (path := self.folder / "checkpoints" / f"{name}.ckpt").is_file():
                return path
        return None


def newest_run(logs: Path = LOGS) -> Run:
    """Return the run of the highest number that has a checkpoint.

    Raises:
        UserError: if there is none.
    """
    folders = [f for f in logs.glob("version_*") if re.fullmatch(r"version_\d+", f.name)]
    for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("version_")), reverse=True):
        if Run(folder).checkpoint():
            return Run(folder)
    raise UserError(
        f"no run with a checkpoint in {logs}: train one first, for example with "
        "`python cli.py fit --config configs/quickstart.yaml`, or give one with --ckpt_path"
    )


def find_checkpoint(ckpt_path: str = "best", of_folder: str = "best") -> Path:
    """Return the checkpoint that is meant: by ``best`` or ``last`` of the newest run, or a path.

    A path may also be that of a run's folder, whose best or last checkpoint it then stands for.

    Raises:
        UserError: if there is no such checkpoint.
    """
    if ckpt_path in ("best", "last"):
        found = newest_run().checkpoint(ckpt_path)
        assert found is not None
        return found
    path = Path(ckpt_path)
    try:
        if path.is_dir() and (found := Run(path).checkpoint(of_folder)):
            return found
        if path.is_file():
            return path
    except OSError:  # a name that no file can have
        pass
    raise UserError(
        f"no checkpoint at {ckpt_path!r}: --ckpt_path takes a .ckpt file, the folder of a run, or "
        "best or last (of the newest run)"
    )


def run_of(checkpoint: Path) -> Run | None:
    """Return the run that a checkpoint lies in, if it still lies in one."""
    run = Run(checkpoint.resolve().parent.parent)
    return run if run.config.is_file() else None
