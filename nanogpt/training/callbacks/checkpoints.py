"""Saves ``best.ckpt`` and ``last.ckpt`` with Lightning's parts; each file is complete or absent."""

import errno
import io
import shlex
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch import Tensor

from nanogpt.atomic import copy_atomically, write_atomically
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import model_file
from nanogpt.notices import notice, program
from nanogpt.runs import LOGS, MODEL, STATE, Run, newest_run

LARGE = ("state_dict", "optimizer_states")  # the same in all checkpoints of a step


class RunFolder(Callback):
    """A callback that writes only to the folder of its run, new or resumed."""

    is_own_folder = False  # whether this run has saved there

    def on_load_checkpoint(self, *_: Any) -> None:
        """Note that the files in the folder are of this run."""
        self.is_own_folder = True

    def claim(self, path: Path) -> None:
        """Raise a ``UserError`` if a new run would overwrite a checkpoint of another one."""
        if path.is_file() and not self.is_own_folder:
            raise UserError(f"{path} is of another run: give the callback another dirpath")
        self.is_own_folder = True


class BestCheckpoint(RunFolder, ModelCheckpoint):
    """Saves ``best.ckpt``, by the val loss, after each evaluation but that of step 0.

    Unlike in a ``ModelCheckpoint``, the saved state has no absolute paths, so that a run folder
    can be moved.

    Args:
        dirpath: folder of the file; by default ``checkpoints`` in the folder of the run.
        monitor: the metric that is minimized.
    """

    def __init__(self, dirpath: str | None = None, monitor: str = "loss/val") -> None:
        super().__init__(
            dirpath,
            filename="best",
            monitor=monitor,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check that no other run has saved in the folder."""
        super().on_train_start(trainer, pl_module)
        self.claim(Path(self.dirpath or "", "best.ckpt"))

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far."""
        return {"best_model_score": self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value, if its checkpoint is in this folder."""
        score, path = state_dict["best_model_score"], Path(self.dirpath or "", "best.ckpt")
        if score is not None and path.is_file():
            self.best_model_score = self.kth_value = score
            self.best_model_path = self.kth_best_model_path = str(path)
            self.best_k_models = {str(path): score}


class LastCheckpoint(RunFolder, Checkpoint):
    """Saves ``last.ckpt`` after each evaluation, every few minutes and after the last step.

    Args:
        dirpath: folder of the file; by default ``checkpoints`` in the folder of the run.
        minutes: maximum time between two saves, while steps are shorter; null for no maximum.
    """

    def __init__(self, dirpath: str | None = None, minutes: float | None = 5.0) -> None:
        self.dirpath, self.minutes = dirpath, minutes
        self.saved_step = self.step = 0  # step 0 is never saved
        self.saved_at = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Choose the folder: by default that of other checkpoints."""
        others = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        default = Path(trainer.log_dir or trainer.default_root_dir, "checkpoints")
        self.dirpath = self.dirpath or str(next(filter(None, others), default))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the timer, and check that no other run has saved in the folder."""
        self.saved_at, self.step = time.monotonic(), trainer.global_step
        self.claim(Path(self.dirpath or "", "last.ckpt"))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save a completed step if the last save is too long ago."""
        if self.minutes is None or trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        due = time.monotonic() - self.saved_at >= 60 * self.minutes
        if trainer.world_size > 1:  # decided by the first one, for all
            if self.step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
                return
            due = trainer.strategy.broadcast(due)
        if due:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the evaluated step, even if it was saved before its evaluation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.saved_step = 0
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, even if it was not evaluated."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> Path | None:
        """Save the current step and return the path, or None if there is nothing to save.

        Raises:
            UserError: if the disk is full or a weight is not finite. The earlier file remains.
        """
        if trainer.fast_dev_run or not trainer.global_step:  # type: ignore[attr-defined]
            return None
        path = Path(self.dirpath or "", "last.ckpt")
        if trainer.global_step != self.saved_step:
            for logger in trainer.loggers:
                logger.save()  # so that a crash loses no curve before this step
            trainer.save_checkpoint(path, weights_only=False)
            self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        return path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces checkpoint files atomically, and refuses values that are not finite.

    Each checkpoint has a model file of the same name beside it, to sample and to share. A second
    checkpoint of the same step is a copy of the first one's files.
    """

    def __init__(self) -> None:
        super().__init__()
        self.latest: tuple[Path, bytes] | None = None  # path, and all but weights and optimizer

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a complete checkpoint, or none.

        Raises:
            UserError: if the disk is full, or a weight or a value of the optimizer state is not
                finite. An earlier file remains.
            OSError: if the file cannot be written for another reason.
        """
        target, step = Path(path), checkpoint.get("global_step")
        if step is not None and not all_finite(checkpoint):  # otherwise it has only weights
            raise UserError(
                f"the result of step {step} is not finite: lower --model.learning_rate, or clip "
                f"gradients with --trainer.gradient_clip_val 1; {describe_last(target.parent)}"
            )
        leave_out_unreadable_states(checkpoint.get("callbacks", {}))
        small = {name: value for name, value in checkpoint.items() if name not in LARGE}
        rest = saved(small).getvalue()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            files = [target.with_name(f"best{suffix}") for suffix in (STATE, MODEL)]
            if self.latest == (files[0], rest) and all(file.is_file() for file in files):
                for file in files:
                    copy_atomically(file, target.with_suffix(file.suffix))
                return
            write_atomically(target, saved(checkpoint).getbuffer())
            if step is not None:
                write_atomically(target.with_suffix(MODEL), model_file(checkpoint))
                self.latest = target, rest
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            size = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
            run = Run(target.parent.parent)
            resume = f" and resume with `{resume_command(run)}`" if run.checkpoint() else ""
            raise UserError(
                f"{error.strerror} at {error.filename}{size}: the run stopped at step {step}; "
                f"{describe_last(target.parent)}; free some space{resume}"
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its model file."""
        super().remove_checkpoint(path)
        Path(path).with_suffix(MODEL).unlink(missing_ok=True)


def saved(content: Any) -> io.BytesIO:
    """Return what ``torch.save`` writes; to a file, it would hide the cause of an OSError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return buffer


def leave_out_unreadable_states(states: dict[str, Any]) -> None:
    """Remove the states of callbacks that cannot be read again without running code."""
    for name, state in list(states.items()):
        try:
            torch.load(saved(state), weights_only=True)
        except Exception:  # as many as there are types
            del states[name]
            notice(
                f"the state of the callback {name} is not saved: its state_dict must return "
                "numbers, texts, tensors, and lists and dictionaries of them"
            )


def all_finite(checkpoint: dict[str, Any]) -> bool:
    """Return whether all weights and values of the optimizer state are finite."""
    optimizers = checkpoint.get("optimizer_states", ())
    states = [state for optimizer in optimizers for state in optimizer["state"].values()]
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    tensors += checkpoint["state_dict"].values()
    finite = [torch.isfinite(tensor).all() for tensor in tensors]
    return bool(torch.stack([each.to(finite[0].device) for each in finite]).all())


def resume_command(run: Run) -> str:
    """Return the command line that resumes a run."""
    is_newest = run.folder.parent == LOGS and run.checkpoint() and newest_run() == run
    return f"{program()} fit --ckpt_path {'last' if is_newest else shlex.quote(str(run.folder))}"


def last_checkpoint(trainer: L.Trainer) -> str:
    """Describe the last checkpoint of a run, which has only finite values, for a message."""
    saved = [c.dirpath for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]
    return describe_last(Path(saved[0])) if saved and saved[0] else "there is no checkpoint"


def describe_last(folder: Path) -> str:
    """Describe the last checkpoint in a folder, for a message."""
    checkpoint = Run(folder.parent).checkpoint("last")
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
