"""Train a stage of the ladder: ``fit`` in a given folder, without its output."""

import io
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses
from nanogpt.models import count_parameters
from nanogpt.text.corpora import Corpus
from nanogpt.training import lightning_cli
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel


@dataclass(frozen=True)
class StageRun:
    """A finished run of a stage: its evaluations, and what the ladder's report needs."""

    history: list[Losses]
    parameters: int
    ngrams: list[NGram]
    corpus: Corpus
    device: torch.device


class StageCLI(lightning_cli.CLI):
    """Runs ``fit`` for a stage; the ladder prints the results. See ``fit_stage``."""

    def __init__(
        self, command: str, argv: list[str], title: str, folder: Path, announce: bool
    ) -> None:
        self.title, self.folder, self.announce = title, folder, announce
        super().__init__(command, argv)

    def print_header(self, trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> None:
        """Print the warning that another corpus replaces a missing one, if it is announced."""
        with nullcontext() if self.announce else redirect_stderr(io.StringIO()):
            super().print_header(trainer, model, data)

    def build_logger(self, root: str) -> TensorBoardLogger:
        """Return a logger that writes to the folder of the run."""
        name, version = str(self.folder.parent), self.folder.name
        return TensorBoardLogger(root, name, version, default_hp_metric=False, flush_secs=10)

    def after_fit(self) -> None:
        """Write the card."""
        self.write_card()


def fit_stage(argv: list[str], title: str, folder: Path, announce: bool) -> StageRun:
    """Run ``fit`` for a stage.

    Args:
        argv: the options of ``fit``.
        title: title of the progress bar.
        folder: folder of the run.
        announce: whether to warn that another corpus replaces a missing one.

    Raises:
        UserError: for a mistake that the user can correct.
    """
    cli = partial(StageCLI, title=title, folder=folder, announce=announce)
    with redirect_stdout(io.StringIO()):
        done = lightning_cli.run("fit", argv, cli)
    data, device = done.datamodule, done.trainer.strategy.root_device
    parameters = count_parameters(done.model.net)
    return StageRun(done.recorder.history, parameters, data.ngrams, data.corpus, device)
