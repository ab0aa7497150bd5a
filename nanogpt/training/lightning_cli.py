"""``fit`` and ``validate``: the LightningCLI of this project."""

import sys
import warnings
from argparse import ArgumentError
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nanogpt.atomic import write_atomically
from nanogpt.errors import Interrupted, UserError
from nanogpt.generation.checkpoint import CORPUS_KEY, read_checkpoint
from nanogpt.notices import notice
from nanogpt.option_errors import explain
from nanogpt.training import callbacks, console, machine
from nanogpt.training.progress_bar import StepBar
from nanogpt.training.write_card import write_card
from nanogpt.training.checkpoints import AtomicCheckpointIO, Keeper
from nanogpt.training.compiled import compiled_loss
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.distillation import choose_loss
from nanogpt.training.run_lock import held
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.log_filter import quiet_lightning
from nanogpt.training.resume import find_start
from nanogpt.training.options import (
    TRAINER_DEFAULTS,
    add_options,
    changed_settings,
    check_evaluation,
    check_fit,
    check_linked,
    check_rooms,
    fit_options,
    resolve_model_settings,
    validate_options,
)


class CLI(LightningCLI):
    """Lightning's command line, with this project's model, data and manners."""

    command: str  # the only subcommand whose parser is built: each takes a tenth of a second
    title = ""  # of the progress bar
    held: ExitStack  # what is let go of at the end

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        """The one command that was given."""
        return {cls.command: LightningCLI.subcommands()[cls.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is not Lightning's."""
        add_options(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, turning what is wrong into one line."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = self._parser(self.command).get_defaults().keys()
            raise UserError(explain(str(error), options)) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # of odd YAML
            raise UserError(
                f"a config is a YAML file in UTF-8, and one of these is not ({str(error)[:100]!r})"
            ) from error
        self.settings = self.config[self.command]
        check_rooms(self.settings)
        resolve_model_settings(self.settings)
        check_linked(self.settings)

    def _parse_ckpt_path(self) -> None:
        """Keep a checkpoint's settings from silently replacing those that were given."""

    def before_instantiate_classes(self) -> None:
        """Check what counts optimizer steps, and prepare the machine."""
        (check_fit if self.command == "fit" else check_evaluation)(self.settings)
        parts = (self.settings, self.dump, self._parser(self.command))
        self.start = find_start(*parts) if self.command == "fit" else None
        self.settings.data.seed = int(self.settings.seed_everything)  # true has become a number
        self.settings.data.vocabulary = self.settings.model.vocabulary
        machine.prepare()

    def dump(self) -> str:
        """Return the whole configuration as YAML, to be repeated from the beginning."""
        settings = self.settings.clone()
        settings.ckpt_path = settings.data.vocabulary = None
        return self._parser(self.command).dump(settings, skip_none=False)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with this project's logger and callbacks."""
        config = self.config_init[self.command].trainer
        # Lightning counts batches; a batch is one of accumulate_grad_batches parts of a step
        if self.command == "fit":
            config.val_check_interval *= config.accumulate_grad_batches
        # config.yaml keeps what was asked for: another machine may have it
        device = machine.device_type(config.accelerator)
        config.precision, reason = machine.fast_precision(config.precision or "32-true", device)
        if reason:
            notice(reason)
        if self.command == "fit":
            self._equip(config)
        else:
            config.logger = config.enable_checkpointing = config.enable_progress_bar = False
        try:
            return super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(" ".join(str(error).split())) from error

    def instantiate_classes(self) -> None:
        """Build the parts, turning what cannot be built into one line."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError) as error:
            raise UserError(explain(str(error), ())) from error

    def _equip(self, config: Namespace) -> None:
        """Add what records, shows and keeps a run."""
        if config.logger in (None, True):
            config.logger = self.tensorboard(config.default_root_dir or ".")
        if config.logger is False:
            notice("no logger: this run leaves no folder, no curves and no checkpoint")
            config.enable_checkpointing = False
        config.callbacks = _listed(config.callbacks)
        keeper = None if config.enable_checkpointing is False else Keeper()
        # Lightning need not add its own; one that is given may keep more
        config.enable_checkpointing = any(isinstance(c, Checkpoint) for c in config.callbacks)
        self.recorder = callbacks.Recorder(
            # not parser.save, which changes the working folder while TensorBoard writes
            lambda path: write_atomically(path, self.dump().encode()),
            self.introduce,
            keeper,
            bool(self.start and self.start.run),
        )
        config.callbacks.append(self.recorder)
        config.enable_progress_bar = config.enable_progress_bar is not False and sys.stderr.isatty()
        if config.enable_progress_bar:
            config.callbacks.append(StepBar(self.title))
        config.profiler = config.profiler or machine.NoProfiler()
        config.plugins = [*_listed(config.plugins), AtomicCheckpointIO()]

    def tensorboard(self, root: str) -> TensorBoardLogger:
        """Return the logger of a run: in its folder, or a new one, ``lightning_logs/version_N``."""
        found = self.start.logger() if self.start else None
        return found or TensorBoardLogger(root, default_hp_metric=False, flush_secs=10)

    def introduce(self, trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> None:
        """Say what is about to be trained."""
        console.introduce(trainer, model, data)
        if self.settings.teachers:
            model.print(f"taught by {', '.join(self.settings.teachers)}")

    def before_fit(self) -> None:
        """Find mistakes before anything is written; find the checkpoint to go on from."""
        if self.start:  # first, since no stand-in need be downloaded
            self.datamodule.follow(self.start.about[CORPUS_KEY])
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.datamodule.check_batch_size(self.trainer)
        settings, device = self.settings, self.trainer.strategy.root_device
        loss = choose_loss(settings.teachers, self.datamodule, device)
        self.model.training_loss = compiled_loss(loss, settings.compile, self.model, self.trainer)
        vocabulary = self.datamodule.tokenizer.vocabulary
        with torch.device("meta"):  # which takes no memory and draws no random numbers
            net = self.model.build(len(vocabulary))
        machine.check_memory(sum(weight.nbytes for weight in net.parameters()))
        if self.start:
            self.model.hparams["vocabulary"] = self.model.hparams["vocabulary"] or vocabulary
            self.model.on_load_checkpoint(self.start.about)
            self.config_init[self.command].ckpt_path = str(self.start.checkpoint)
            self.config_init[self.command].weights_only = True
        self.held.enter_context(held(self.trainer, self.start))

    def after_fit(self) -> None:
        """Print how it went, and where everything is."""
        reference = self.settings.reference
        console.after_fit(self.trainer, self.datamodule, self.recorder.history, reference)
        self.write_card()

    def write_card(self) -> None:
        """Write a card of the run into its folder, unless told not to."""
        if self.settings.card:
            changed = changed_settings(self.settings, self._parser(self.command).get_defaults())
            reference = self.settings.reference
            write_card(self.trainer, self.datamodule, self.recorder, reference, changed)

    def before_validate(self) -> None:
        """Take the weights, the vocabulary, and the corpus if another one stood in."""
        checkpoint = read_checkpoint(Path(self.settings.ckpt_path))
        self.model.hparams["vocabulary"] = checkpoint.tokenizer.vocabulary
        self.model.on_load_checkpoint(checkpoint.content)  # before the sizes of a config take memory
        self.model.configure_model()
        self.model.load_state_dict(checkpoint.content["state_dict"])
        self.datamodule.use(self.model.hparams["vocabulary"], checkpoint.corpus)
        # all is loaded: Lightning need not, and would ask for the callbacks of the training
        self.config_init[self.command].ckpt_path = None

    def after_validate(self) -> None:
        """Print the evaluation."""
        console.after_validate(self.trainer, self.datamodule, Path(self.settings.ckpt_path))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def run(command: str, options: list[str], cli: type[CLI] = CLI) -> CLI:
    """Run ``fit`` or ``validate`` with the given options; return what ran it.

    Raises:
        UserError: for whatever the user can mend.
        Interrupted: after Ctrl-C or SIGTERM, once the step is done and saved.
        KeyboardInterrupt: after a Ctrl-C that cannot wait, once Lightning has wound up.
    """
    if not {"-h", "--help"} & set(options):
        options = {"fit": fit_options, "validate": validate_options}[command](options)
    cli.command = command
    try:
        with warnings.catch_warnings(), quiet_lightning(), ExitStack() as cli.held:
            return cli(
                LanguageModel,
                CharDataModule,
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
    except SIGTERMException as end:  # before the recorder listened, or on several devices
        raise Interrupted("stopped by SIGTERM; kept up to the last evaluation", 143) from end
    except SystemExit as end:
        if end.code == 1:  # how Lightning ends the process after Ctrl-C
            raise KeyboardInterrupt from None
        raise
