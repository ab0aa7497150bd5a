"""The checkpoint to use where the one that is meant is damaged."""

from pathlib import Path
from typing import Literal

from nanogpt.errors import UserError
from nanogpt.generation.loading import read_checkpoint
from nanogpt.notices import notice
from nanogpt.runs import find_checkpoint


def sound_checkpoint(ckpt_path: str = "best", of_folder: Literal["best", "last"] = "best") -> Path:
    """Return the checkpoint that is meant, or the run's other one where it cannot be read.

    One that is given by its own path is returned as it is: nothing else stands in for it.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
        of_folder: which one a run's folder stands for.

    Raises:
        UserError: if there is no such checkpoint, or neither can be read.
    """
    path = find_checkpoint(ckpt_path, of_folder)
    if ckpt_path not in ("best", "last") and not Path(ckpt_path).is_dir():
        return path
    try:
        read_checkpoint(path)
    except UserError as error:
        other = path.with_name("last.ckpt" if path.name == "best.ckpt" else "best.ckpt")
        if not other.is_file():
            raise
        try:
            read_checkpoint(other)
        except UserError:
            raise UserError(
                f"neither {path} nor {other.name} beside it can be read: give another checkpoint "
                "with --ckpt_path, or train again"
            ) from error
        notice(f"{path} is damaged: {other} takes its place")
        return other
    return path
