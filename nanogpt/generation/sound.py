"""The checkpoint to use where the one that is meant is damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from nanogpt.errors import UserError
from nanogpt.notices import notice
from nanogpt.runs import find_checkpoint

Content = TypeVar("Content")


def read_sound(
    read: Callable[[Path], Content],
    ckpt_path: str = "best",
    of_folder: Literal["best", "last"] = "best",
) -> tuple[Path, Content]:
    """Read the checkpoint that is meant, or the run's other one where it cannot be read.

    Nothing else stands in for one that is given by its own path.

    Args:
        read: a file, such as ``read_checkpoint`` or ``load_model``.
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
        of_folder: which one a run's folder stands for.

    Returns: the path of the one that was read, and what is in it.

    Raises:
        UserError: if there is no such checkpoint, or neither can be read.
    """
    path = find_checkpoint(ckpt_path, of_folder)
    try:
        return path, read(path)
    except UserError as error:
        other = path.with_name("last.ckpt" if path.name == "best.ckpt" else "best.ckpt")
        alone = ckpt_path not in ("best", "last") and not Path(ckpt_path).is_dir()
        if alone or not other.is_file():
            raise
        try:
            content = read(other)
        except UserError:
            raise UserError(
                f"neither {path} nor {other.name} beside it can be read: give another checkpoint "
                "with --ckpt_path, or train again"
            ) from error
        notice(f"{path} is damaged: {other} takes its place")
        return other, content
