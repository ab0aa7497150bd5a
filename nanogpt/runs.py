"""Finds runs and their checkpoints.

A checkpoint is two files: ``best.ckpt``, to resume the run, and ``best.safetensors``, the model.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanogpt.errors import UserError
from nanogpt.notices import program

LOGS = Path("lightning_logs")
MODEL, STATE = ".safetensors", ".ckpt"  # suffixes

CheckpointName = Literal["best", "last"]


@dataclass(frozen=True)
class Run:
    """A run folder, such as ``lightning_logs/version_0``."""

    folder: Path

    @property
    def config(self) -> Path:
        """The file with all settings of the run."""
        return self.folder / "config.yaml"

    def model(self, which: CheckpointName = "best") -> Path | None:
        """Return the ``best`` or ``last`` model, or the other one if it is missing."""
        return self._find(which, MODEL)

    def checkpoint(self, which: CheckpointName = "last") -> Path | None:
        """Return the ``best`` or ``last`` checkpoint to resume, or the other if it is missing."""
        return self._find(which, STATE)

    def _find(self, which: CheckpointName, suffix: str) -> Path | None:
        for name in (which, "best", "last"):
            if (path := self.folder / "checkpoints" / f"{name}{suffix}").is_file():
                return path
        return None


def newest_run() -> Run:
    """Return the run with the highest number that has a checkpoint, or raise UserError."""
    folders = [f for f in LOGS.glob("version_*") if re.fullmatch(r"version_\d+", f.name)]
    for folder in sorted(folders, key=lambda f: int(f.name.removeprefix("version_")), reverse=True):
        if Run(folder).model() or Run(folder).checkpoint():
            return Run(folder)
    raise UserError(
        f"no run with a checkpoint in {LOGS}: train one first, for example with "
        f"`{program()} fit --config quickstart`, or pass one to --ckpt_path"
    )


def find_model(ckpt_path: str = "best") -> Path:
    """Return the path of a model file; raise UserError if it does not exist.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, a model file, or a
            checkpoint with a model file beside it.
    """
    if found := _find(ckpt_path, MODEL, "best"):
        return found
    if found := _find(ckpt_path, STATE, "best"):
        raise UserError(
            f"{found} has no {MODEL} file beside it, as those of an older version: resume the run "
            "once, which writes one, or train again"
        )
    raise UserError(
        f"no model at {ckpt_path!r}: --ckpt_path takes a {MODEL} file, a run folder, or best or "
        "last (of the newest run)"
    )


def find_checkpoint(ckpt_path: str = "last") -> Path:
    """Return the path of a checkpoint to resume; raise UserError if it does not exist.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, a checkpoint file, or a
            model file with a checkpoint beside it.
    """
    if found := _find(ckpt_path, STATE, "last"):
        return found
    if found := _find(ckpt_path, MODEL, "last"):
        raise UserError(f"{found} is only a model: a run resumes from its {STATE} file")
    raise UserError(
        f"no checkpoint at {ckpt_path!r}: --ckpt_path takes a {STATE} file, a run folder, or best "
        "or last (of the newest run)"
    )


def _find(ckpt_path: str, suffix: str, preferred: CheckpointName) -> Path | None:
    if ckpt_path in ("best", "last"):
        return newest_run()._find("best" if ckpt_path == "best" else "last", suffix)
    path = Path(ckpt_path)
    with suppress(OSError, ValueError):  # not a valid file name
        file = path.with_suffix(suffix) if path.suffix in (MODEL, STATE) else path
        return file if file.is_file() else Run(path)._find(preferred, suffix)
    return None


def run_of(checkpoint: Path) -> Run | None:
    """Return the run whose folder contains a checkpoint, if any."""
    run = Run(checkpoint.resolve().parent.parent)
    return run if run.config.is_file() else None


def started_in(run: Run | None) -> Path | None:
    """Return the folder that contains the ``lightning_logs`` of a run, where it was started."""
    return run.folder.resolve().parent.parent if run else None
