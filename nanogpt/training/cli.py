"""``fit`` and ``validate``: the LightningCLI of this project."""

import logging
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.errors import UserError
from nanogpt.training.callbacks import (
    Evaluations,
    Introduction,
    StepBar,
    TrainingCurve,
    checkpoints,
)
from nanogpt.training.data import CharacterData
from nanogpt.training.machine import fast_precision, keep_freed_memory
from nanogpt.training.module import LanguageModel


class CLI(LightningCLI):
    """Lightning's command line, with this project's model, data and manners."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only what this project does with a trainer."""
        kept = ("fit", "validate")
        return {name: args for name, args in LightningCLI.subcommands().items() if name in kept}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What the data takes from the model and the run."""
        parser.link_arguments("model.block_size", "data.block_size")
        parser.link_arguments("seed_everything", "data.seed")

    def _parse_ckpt_path(self) -> None:
        """Leave explicit flags alone: the run's own config was read before them."""

    def before_instantiate_classes(self) -> None:
        """Fit the settings to the machine."""
        keep_freed_memory()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[self.subcommand]["trainer"]
        if config.logger in (None, True):
            config.logger = TensorBoardLogger(
                config.default_root_dir or ".", default_hp_metric=False
            )
        config.precision = "32-true"
        return super().instantiate_trainer(**kwargs)


def run(args: list[str]) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    CLI(
        LanguageModel,
        CharacterData,
        args=args,
        seed_everything_default=1337,
        auto_configure_optimizers=False,
        trainer_defaults=dict(
            max_epochs=-1,
            num_sanity_val_steps=-1,
            check_val_every_n_epoch=None,
            enable_model_summary=False,
            callbacks=[Introduction(), Evaluations(), TrainingCurve(), StepBar(), checkpoints()],
        ),
    )


if __name__ == "__main__":
    argv, sys.argv = sys.argv[1:], sys.argv[:1]
    run(argv)
