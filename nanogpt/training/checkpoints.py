"""Checkpoint files: which are kept, and how they are written."""

import errno
import io
from pathlib import Path
from signal import Signals
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from nanogpt.atomic import write_atomically
from nanogpt.errors import Interrupted, UserError
from nanogpt.runs import LOGS, Run, newest_run
from nanogpt.training.non_finite_guard import check_finite, kept


class Keeper:
    """Keeps ``best.ckpt``, by the val loss, and ``last.ckpt`` in the folder of a run.

    Lightning's ModelCheckpoint would do it in two callbacks, with paths in their state and work
    at every step.
    """

    def __init__(self) -> None:
        self.saved = 0  # the step that last.ckpt holds; step 0 can be had again at no cost

    def keep(self, trainer: L.Trainer, best: bool | None = None) -> Path | None:
        """Save the step that is done: as the last, and before that as the best if it is.

        Args:
            trainer: between two steps.
            best: whether the evaluation of this step is the best so far, if there was one.

        Returns: the path of ``last.ckpt``, or None where there is nothing to be kept.

        Raises:
            UserError: if the disk is full, or the model is not finite: what is there stays.
        """
        if trainer.fast_dev_run or not trainer.global_step:  # type: ignore[attr-defined]
            return None
        assert trainer.log_dir is not None
        folder = Path(trainer.log_dir) / "checkpoints"
        if trainer.global_step != self.saved:
            check_finite(trainer)
            for logger in trainer.loggers:
                logger.save()  # the curves are never behind the checkpoint
            # one that is better, but in another folder, is not there
            if best or (best is False and not (folder / "best.ckpt").exists()):
                self._write(trainer, folder / "best.ckpt")
            self._write(trainer, folder / "last.ckpt")
            self.saved = trainer.global_step
        return folder / "last.ckpt"

    @staticmethod
    def _write(trainer: L.Trainer, path: Path) -> None:
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            room = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
            run = Run(Path(trainer.log_dir or "."))
            way_out = (
                f"make room and go on with `{command(run)}`" if run.checkpoint() else "make room"
            )
            raise UserError(
                f"{error.strerror} at {error.filename}{room}: the run is stopped at step "
                f"{trainer.global_step}; {kept(trainer)}; {way_out}"
            ) from error


def stop(trainer: L.Trainer, keeper: Keeper | None, received: Signals) -> NoReturn:
    """Save the step that is done, and end the run.

    Raises:
        Interrupted: that says where it is saved and how to go on.
    """
    path, where = keeper.keep(trainer) if keeper else None, "nothing is kept yet"
    if path is not None:
        where = f"saved in {path}; go on with `{command(Run(path.parent.parent))}`"
    name = {Signals.SIGINT: "Ctrl-C"}.get(received, received.name)
    line = f"stopped by {name} after step {trainer.global_step}: {where}"
    raise Interrupted(line, 128 + received)


def command(run: Run) -> str:
    """Return the command line that goes on with a run."""
    newest = run.folder.parent == LOGS and run.checkpoint() and newest_run() == run
    return f"python cli.py fit --ckpt_path {'last' if newest else run.folder}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes and renames: a full disk leaves the old file whole."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint under its name, or not at all.

        Raises:
            OSError: if it cannot be written; ``filename`` is the target's.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch would turn an OSError into a RuntimeError without a cause
        torch.save(checkpoint, content)
        write_atomically(target, content.getbuffer())
