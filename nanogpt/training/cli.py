"""``fit`` and ``validate``: the LightningCLI of this project."""

import json
import logging
import sys
import threading
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.errors import UserError
from nanogpt.generation.loading import read_checkpoint
from nanogpt.insight.reference import curve_names
from nanogpt.notices import notice
from nanogpt.parsing import explain
from nanogpt.runs import find_checkpoint, run_of
from nanogpt.training import callbacks, machine, report
from nanogpt.training.checkpoints import AtomicCheckpointIO, best_and_last
from nanogpt.training.data import CharacterData
from nanogpt.training.module import LanguageModel

TRAINER_DEFAULTS = {
    "devices": 1,
    "max_epochs": -1,  # steps are what is counted
    "val_check_interval": 500,
    "check_val_every_n_epoch": None,  # over all steps, not within an epoch
    "num_sanity_val_steps": -1,  # the whole evaluation, at step 0
    "enable_model_summary": False,
}


class CLI(LightningCLI):
    """Lightning's command line, with this project's model, data and manners."""

    command: str  # the only subcommand whose parser is built: each takes a tenth of a second

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """The one command that was given."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the reference, and what the data takes from the model and the run."""
        parser.add_argument(
            "--reference",
            type=str | None,
            help=f"the reference's curve to compare with: {' or '.join(curve_names())}",
        )
        parser.link_arguments("model.block_size", "data.block_size")
        parser.link_arguments("seed_everything", "data.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, turning what is wrong into one line."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = self._parser(self.command).get_defaults().keys()
            raise UserError(explain(str(error), options)) from error
        self.settings = self.config[self.command]
        if self.settings.reference not in (None, *curve_names()):
            raise UserError(
                f"no reference {self.settings.reference!r}; there are {', '.join(curve_names())}"
            )

    def _parse_ckpt_path(self) -> None:
        """Leave explicit flags alone: the run's own config was read before them."""

    def before_instantiate_classes(self) -> None:
        """Check what counts optimizer steps, and fit the settings to the machine."""
        trainer = self.settings.trainer
        if self.command == "fit":
            if trainer.max_epochs != -1 or (trainer.max_steps < 0 and trainer.max_time is None):
                raise UserError(
                    "training is counted in optimizer steps: set --trainer.max_steps (or "
                    "--trainer.max_time), and leave --trainer.max_epochs out"
                )
            if not isinstance(trainer.val_check_interval, int) or trainer.val_check_interval < 1:
                raise UserError(
                    "val_check_interval is the number of optimizer steps between evaluations: "
                    f"a whole number from 1, not {trainer.val_check_interval!r}"
                )
        self.settings.data.seed = int(self.settings.seed_everything)  # true has become a number
        machine.prepare()
        device = machine.device_type(trainer.accelerator)
        precision = trainer.precision or "32-true"
        trainer.precision, reason = machine.fast_precision(precision, device)
        if reason:
            notice(reason)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with this project's logger and callbacks."""
        config = self.config_init[self.command].trainer
        # Lightning counts batches; a batch is one of accumulate_grad_batches parts of a step
        config.val_check_interval *= config.accumulate_grad_batches
        if self.command == "fit":
            self._equip(config)
        else:
            config.logger = config.enable_checkpointing = config.enable_progress_bar = False
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            raise UserError(" ".join(str(error).split())) from error

    def _equip(self, config: Namespace) -> None:
        """Add what records, shows and keeps a run."""
        if config.logger in (None, True):
            root = config.default_root_dir or "."
            config.logger = TensorBoardLogger(root, default_hp_metric=False, flush_secs=10)
        if config.logger is False:
            notice("no logger: this run leaves no folder, no curves and no checkpoint")
            config.enable_checkpointing = False
        self.recorder = callbacks.Recorder(
            lambda path: self._parser(self.command).save(self.settings, path, skip_none=False)
        )
        ours: list[Callback] = [self.recorder]
        config.enable_progress_bar = config.enable_progress_bar is not False and sys.stderr.isatty()
        if config.enable_progress_bar:
            ours.append(callbacks.StepBar())
        if config.enable_checkpointing is not False:
            ours.append(best_and_last())
        config.callbacks = _listed(config.callbacks) + ours
        config.plugins = [*_listed(config.plugins), AtomicCheckpointIO()]

    def after_fit(self) -> None:
        """Say how it went, and where everything is."""
        reference = self.settings.reference
        report.after_fit(self.trainer, self.datamodule, self.recorder.history, reference)

    def before_validate(self) -> None:
        """Take the weights, the vocabulary, and the corpus if another one stood in."""
        checkpoint = read_checkpoint(Path(self.settings.ckpt_path))
        self.model.hparams["vocabulary"] = checkpoint["hyper_parameters"]["vocabulary"]
        self.model.configure_model()
        try:
            self.model.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise UserError(
                f"{self.settings.ckpt_path} does not fit these settings of the model; leave the "
                "options --model.* out"
            ) from error
        self.datamodule.use(self.model.hparams["vocabulary"], checkpoint["CharacterData"])
        # all is loaded: Lightning need not, and would ask for the callbacks of the training
        self.config_init[self.command].ckpt_path = None

    def after_validate(self) -> None:
        """Print the evaluation."""
        report.after_validate(self.trainer, self.datamodule, Path(self.settings.ckpt_path))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def run(command: str, options: list[str]) -> None:
    """Run ``fit`` or ``validate`` with the given options.

    Raises:
        UserError: for whatever the user can mend.
        KeyboardInterrupt: after Ctrl-C, once Lightning has wound up.
    """
    if command == "validate" and not {"-h", "--help"} & set(options):
        options = validate_options(options)
    CLI.command = command
    try:
        with warnings.catch_warnings(), quiet_lightning():
            CLI(
                LanguageModel,
                CharacterData,
                args=[command, *options],
                save_config_callback=None,  # the recorder does it
                seed_everything_default=1337,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    command: {"exit_on_error": False},
                },
                trainer_defaults=TRAINER_DEFAULTS,
            )
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except SystemExit as end:
        if end.code == 1:  # how Lightning ends the process after Ctrl-C
            raise KeyboardInterrupt from None
        raise


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's own announcements back, and show warnings as notices."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.")
    warnings.showwarning = lambda message, *_args, **_kwargs: notice(str(message))
    # what goes wrong in TensorBoard's writing thread is raised again in the main thread
    hook, threading.excepthook = threading.excepthook, lambda _args: None
    try:
        yield
    finally:
        threading.excepthook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def validate_options(options: list[str]) -> list[str]:
    """Put the run's own config before the given options, and its checkpoint after them."""
    chosen = "best"
    for place, option in enumerate(options):
        name, _, value = option.partition("=")
        if name == "--ckpt_path":
            chosen = value or "".join(options[place + 1 : place + 2])
    checkpoint = find_checkpoint(chosen)
    hparams = dict(read_checkpoint(checkpoint)["hyper_parameters"], vocabulary=None)
    found = run_of(checkpoint)
    config = str(found.config) if found else json.dumps({"model": hparams})
    return ["--config", config, *options, "--ckpt_path", str(checkpoint), "--verbose", "false"]
