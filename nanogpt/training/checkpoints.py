"""Checkpoint files: which are kept, and how they are written."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from nanogpt.atomic import write_atomically


def best_and_last() -> list[ModelCheckpoint]:
    """Keep ``best.ckpt``, by the val loss, and ``last.ckpt``, renewed at every evaluation.

    Two callbacks, since Lightning's ``save_last`` copies the best: it skips later, worse steps.
    """
    return [
        ModelCheckpoint(filename="best", monitor="loss/val", enable_version_counter=False),
        ModelCheckpoint(filename="last", monitor=None, enable_version_counter=False),
    ]


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
