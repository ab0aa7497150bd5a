"""Saves ``best.ckpt`` and ``last.ckpt`` atomically, and ends a run that is asked to stop."""

import errno
import io
import signal
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from nanogpt.atomic import write_atomically
from nanogpt.errors import Interrupted, UserError
from nanogpt.notices import program
from nanogpt.runs import LOGS, Run, newest_run
from nanogpt.training.non_finite_guard import check_finite, last_checkpoint


class CheckpointSaver:
    """Saves ``best.ckpt``, by the val loss, and ``last.ckpt`` in a run folder.

    Lightning's ModelCheckpoint would need two callbacks, whose state contains paths and which work
    at every step.
    """

    def __init__(self) -> None:
        self.saved_step = 0  # of last.ckpt; step 0 is never saved

    def save(self, trainer: L.Trainer, is_best: bool | None = None) -> Path | None:
        """Save the current step as ``last.ckpt``, and first as ``best.ckpt`` if it is the best.

        ``RunRecorder`` calls this after each evaluation and at the end of the run, and
        ``stop_run`` on a signal.

        Args:
            trainer: between two steps.
            is_best: whether this step has the lowest val loss so far; None if it has none.

        Returns:
            The path of ``last.ckpt``, or None if there is nothing to save.

        Raises:
            UserError: if the disk is full or a weight is not finite. Existing checkpoints remain.
        """
        if trainer.fast_dev_run or not trainer.global_step:  # type: ignore[attr-defined]
            return None
        assert trainer.log_dir is not None
        folder = Path(trainer.log_dir) / "checkpoints"
        if trainer.global_step != self.saved_step:
            check_finite(trainer)
            for logger in trainer.loggers:
                logger.save()  # the curves must not be behind the checkpoint
            # the best checkpoint may be in the folder of the run that this one was resumed from
            if is_best or (is_best is False and not (folder / "best.ckpt").exists()):
                self._write(trainer, folder / "best.ckpt")
            self._write(trainer, folder / "last.ckpt")
            self.saved_step = trainer.global_step
        return folder / "last.ckpt"

    @staticmethod
    def _write(trainer: L.Trainer, path: Path) -> None:
        try:
            trainer.save_checkpoint(path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
            run = Run(Path(trainer.log_dir or "."))
            resume = f" and resume with `{resume_command(run)}`" if run.checkpoint() else ""
            raise UserError(
                f"{error.strerror} at {error.filename}{size}: the run stopped at step "
                f"{trainer.global_step}; {last_checkpoint(trainer)}; free some space{resume}"
            ) from error


def stop_run(
    trainer: L.Trainer, saver: CheckpointSaver | None, requested_by: signal.Signals
) -> NoReturn:
    """Save the current step and end the run.

    Raises:
        Interrupted: with the path of the checkpoint and the command to resume.
    """
    path, result = saver.save(trainer) if saver else None, "no checkpoint has been saved"
    if path is not None:
        result = f"saved in {path}; resume with `{resume_command(Run(path.parent.parent))}`"
    name = "Ctrl-C" if requested_by == signal.SIGINT else requested_by.name
    line = f"stopped by {name} after step {trainer.global_step}: {result}"
    raise Interrupted(line, 128 + requested_by)


def resume_command(run: Run) -> str:
    """Return the command line that resumes a run."""
    is_newest = run.folder.parent == LOGS and run.checkpoint() and newest_run() == run
    return f"{program()} fit --ckpt_path {'last' if is_newest else run.folder}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces checkpoint files atomically: a full disk leaves the old file intact."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a complete checkpoint, or none.

        Raises:
            OSError: if it cannot be written; ``filename`` is the path.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # writing to a file, torch would hide the cause of an OSError
        torch.save(checkpoint, content)
        write_atomically(target, content.getbuffer())
