"""Prints the lines before training."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from nanogpt.notices import print_text
from nanogpt.training import console
from nanogpt.training.compiled import Choice, plan_compilation
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.gpu_summary import gpu_summary
from nanogpt.training.hardware_settings import limit_threads
from nanogpt.training.lightning_module import LanguageModel


class Header(Callback):
    """Prints corpus, model size, device and folder of a run, and its duration if that is long.

    On a CPU it also sets the number of threads.

    Args:
        folder: folder of the run; None if it has none.
        teachers: paths of the models to distill.
        compiled: the setting ``--compile``.
        warn: whether to warn that another corpus replaces a missing one.
    """

    def __init__(
        self, folder: Path | None, teachers: Sequence[str], compiled: Choice, warn: bool = True
    ) -> None:
        self.folder, self.teachers, self.compiled, self.warn = folder, teachers, compiled, warn

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the lines."""
        data: CharDataModule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, LanguageModel)
        if trainer.strategy.root_device.type == "cpu":
            limit_threads(console.flop_per_step(pl_module, data))
        if not trainer.is_global_zero:
            return
        if data.corpus.stands_in_for and self.warn:
            console.warn_about_replaced_corpus(data.corpus)
        console.print_header(trainer, pl_module, data, self.folder)
        if trainer.strategy.root_device.type != "cpu":
            plan = plan_compilation(self.compiled, pl_module, data, trainer)
            print(gpu_summary(trainer, pl_module, data, plan), flush=True)
        if self.teachers:
            print_text(f"teachers: {', '.join(self.teachers)}")
