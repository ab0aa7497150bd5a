"""Train a stage of the ladder: ``fit`` in a given folder, without its output."""

import io
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses
from nanogpt.models import count_parameters
from nanogpt.text.corpora import Corpus
from nanogpt.training import lightning_cli


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
        self.title, self.folder_of_stage, self.warn_about_corpus = title, folder, announce
        super().__init__(command, argv)

    def new_folder(self, root: str) -> Path:
        """Return the folder of the run."""
        return Path(root) / self.folder_of_stage

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
    return StageRun(done.run_state.history, parameters, data.ngrams, data.corpus, device)
