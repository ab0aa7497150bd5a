"""Writes the settings of a run to its folder and tells the other callbacks where it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from nanogpt.atomic import remove_partial_files, write_atomically
from nanogpt.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from nanogpt.training.loggers import Row, continue_csv


class RunRecord(Callback):
    """Writes ``config.yaml`` to the folder of a run, whatever its loggers.

    Args:
        folder: folder of the run; that of the first process counts.
        config: the content of ``config.yaml``.
        rows: metrics of the earlier part of a resumed run, by folder of a ``CSVLogger``, which
            removes its file when it opens.
    """

    def __init__(self, folder: Path, config: str, rows: Mapping[str, Sequence[Row]]) -> None:
        self.folder, self.config, self.rows = folder, config, rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the config, and let the checkpoints be saved in the folder."""
        if stage != "fit":
            return
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint | LastCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(self.folder / "checkpoints")
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
            write_atomically(self.folder / "config.yaml", self.config.encode())
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):  # would keep that of the earlier part
                    Path(logger.log_dir, "hparams.yaml").unlink(missing_ok=True)
                if isinstance(logger, CSVLogger):
                    continue_csv(logger, self.rows.get(logger.log_dir, []))
