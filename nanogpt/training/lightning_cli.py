"""The LightningCLI of ``fit`` and ``validate``."""

import warnings
from argparse import ArgumentError
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from nanogpt import kernels
from nanogpt.atomic import write_atomically
from nanogpt.errors import Interrupted, UserError
from nanogpt.generation.checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from nanogpt.notices import program
from nanogpt.option_errors import explain
from nanogpt.runs import Run
from nanogpt.training import console, hardware_settings, options, trainer_parts
from nanogpt.training.callbacks import RunRecorder
from nanogpt.training.card_writer import write_card
from nanogpt.training.compiled import compiled_loss
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.distillation import build_loss
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.log_filter import filtered_logs
from nanogpt.training.resume import ResumePoint, find_resume_point
from nanogpt.training.run_config import notice_differences, prepend_run_config
from nanogpt.training.run_lock import lock_folder


class CLI(LightningCLI):
    """Runs the command ``fit`` or ``validate`` with the options ``argv``."""

    title = ""  # of the progress bar

    def __init__(self, command: str, argv: list[str]) -> None:
        self.command, self.modified_ns = command, 0
        self.checkpoint: Checkpoint | None = None
        self.resume_point: ResumePoint | None = None
        if not {"-h", "--help"} & set(argv):
            argv, self.checkpoint = prepend_run_config(command, argv)
            self.modified_ns = self.checkpoint.path.stat().st_mtime_ns if self.checkpoint else 0
        with warnings.catch_warnings(), filtered_logs(), ExitStack() as self.locks:
            super().__init__(
                LanguageModel,
                CharDataModule,
                args=[command, *argv],
                save_config_callback=None,  # the RunRecorder saves it
                seed_everything_default=1337,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={
                    "prog": program(),
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    command: {"exit_on_error": False},
                },
                trainer_defaults=options.TRAINER_DEFAULTS,
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the current command: building a parser takes a tenth of a second."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are not Lightning's."""
        options.add_options(parser)

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        options.set_ckpt_path_help(parser)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options; raise a one-line error if they are not valid."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            names = self._parser(self.command).get_defaults().keys()
            raise UserError(explain(str(error), names)) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # malformed YAML
            raise UserError(
                f"a config is not valid ({str(error)[:100]!r}): write it as YAML in UTF-8"
            ) from error
        self.settings = self.config[self.command]
        options.check_sections(self.settings)
        options.resolve_model_settings(self.settings)
        options.check_derived(self.settings)

    def _parse_ckpt_path(self) -> None:
        """Do not let the hyperparameters of a checkpoint override the given settings."""

    def before_instantiate_classes(self) -> None:
        """Check the settings, find where to resume, and configure the process."""
        settings = self.settings
        if self.command == "fit":
            options.check_steps(settings)
            settings.teachers = [options.find_teacher(given) for given in settings.teachers]
            if settings.ckpt_path and not self.checkpoint:  # set in a config
                self.checkpoint = load_checkpoint(settings.ckpt_path, of_folder="last")
                self.modified_ns = self.checkpoint.path.stat().st_mtime_ns
            if self.checkpoint:
                point = find_resume_point(self.checkpoint, self.modified_ns, settings.trainer)
                self.resume_point, self.checkpoint = point, None  # frees its memory
                if point.run:
                    saved = point.run.config.read_text(encoding="utf-8")
                    notice_differences(saved, self.dump(settings), self.dump(self._defaults()))
        elif settings.trainer.limit_val_batches == 0:
            raise UserError("validate needs an evaluation: leave --trainer.limit_val_batches out")
        settings.data.seed = int(settings.seed_everything)  # a bool has become a number
        settings.data.vocabulary = settings.model.vocabulary
        hardware_settings.configure_process()

    def _defaults(self) -> Namespace:
        return options.default_settings(self._parser(self.command), self.settings)

    def dump(self, settings: Namespace) -> str:
        """Return settings as YAML, to repeat the run from its start."""
        settings = settings.clone()
        settings.ckpt_path = settings.data.vocabulary = None
        return self._parser(self.command).dump(settings, skip_none=False)

    def instantiate_classes(self) -> None:
        """Build the model, the data and the trainer; raise a one-line error if that fails."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(explain(str(error), ())) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer with the configured parts and this project's own."""
        config = self.config_init[self.command].trainer  # config.yaml keeps the configured ones
        trainer_parts.replace_slow_precision(config)
        if self.command == "fit":
            if config.logger in (None, True):
                config.logger = self.build_logger(config.default_root_dir or ".")
            self.recorder = RunRecorder(
                # parser.save would change the working directory while TensorBoard writes
                lambda path: write_atomically(path, self.dump(self.settings).encode()),
                self.print_header,
                same_folder=bool(self.resume_point and self.resume_point.run),
            )
            trainer_parts.add_fit_parts(config, self.recorder, self.title)
        else:
            config.logger = config.enable_checkpointing = config.enable_progress_bar = False
        return super().instantiate_trainer(**kwargs)

    def build_logger(self, root: str) -> TensorBoardLogger:
        """Return the logger of a resumed run, or of a new ``lightning_logs/version_N``."""
        resumed = self.resume_point.logger() if self.resume_point else None
        return resumed or TensorBoardLogger(root, default_hp_metric=False, flush_secs=10)

    def print_header(self, trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> None:
        """Print the lines before training."""
        console.print_header(trainer, model, data)
        if self.settings.teachers:
            model.print(f"teachers: {', '.join(self.settings.teachers)}")

    def before_fit(self) -> None:
        """Set up data, loss and checkpoint, and find mistakes before anything is written."""
        if self.resume_point:  # first: it may replace a corpus that would have to be downloaded
            self.datamodule.restore_corpus(self.resume_point.corpus)
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.datamodule.check_batch_size(self.trainer)
        settings, device = self.settings, self.trainer.strategy.root_device
        loss = build_loss(settings.teachers, self.datamodule, device)
        self.model.training_loss = compiled_loss(loss, settings.compile, self.model, self.trainer)
        vocabulary = self.datamodule.tokenizer.vocabulary
        with torch.device("meta"):  # shapes only
            net = self.model.build(len(vocabulary))
        hardware_settings.check_memory(sum(weight.nbytes for weight in net.parameters()))
        if self.resume_point:
            self.model.hparams["vocabulary"] = self.model.hparams["vocabulary"] or vocabulary
            self.model.check_compatible(self.resume_point.hparams)
            self.config_init[self.command].ckpt_path = str(self.resume_point.path)
            self.config_init[self.command].weights_only = True
        if isinstance(self.trainer.logger, TensorBoardLogger) and self.trainer.is_global_zero:
            self.locks.enter_context(lock_folder(Path(self.trainer.logger.log_dir)))
            if self.resume_point:
                self.resume_point.check_unchanged()

    @cached_property
    def best_checkpoint(self) -> Checkpoint | None:
        """The best checkpoint of the finished run, if it saved one and this is the main process."""
        trainer = self.trainer
        run = Run(Path(trainer.log_dir)) if trainer.logger and trainer.log_dir else None
        path = run.checkpoint() if run and trainer.is_global_zero else None
        checkpoint = read_checkpoint(path) if path else None
        if checkpoint:
            kernels.install(checkpoint.model)
        return checkpoint

    def after_fit(self) -> None:
        """Print the result and write the card."""
        if self.trainer.is_global_zero:
            reference, history = self.settings.reference, self.recorder.history
            console.print_result(self.datamodule, history, reference, self.best_checkpoint)
        self.write_card()

    def write_card(self) -> None:
        """Write a card of the run to its folder, unless ``--card false`` is given."""
        if self.settings.card and self.best_checkpoint and self.recorder.history:
            parts = (self.trainer, self.datamodule, self.recorder, self.best_checkpoint)
            write_card(*parts, self.settings, self._defaults())

    def before_validate(self) -> None:
        """Use the network, the vocabulary and the corpus of the checkpoint."""
        assert self.checkpoint
        vocabulary = self.checkpoint.tokenizer.vocabulary
        self.model.hparams["vocabulary"] = self.datamodule.vocabulary = vocabulary
        self.model.check_compatible(self.checkpoint.settings)
        self.model.net = kernels.install(self.checkpoint.model)
        self.datamodule.restore_corpus(self.checkpoint.corpus)
        # Lightning would load it again, and ask for the callbacks of the training
        self.config_init[self.command].ckpt_path = None

    def after_validate(self) -> None:
        """Print the evaluation."""
        assert self.checkpoint
        console.print_validation(self.trainer, self.datamodule.corpus.name, self.checkpoint)


def run(command: str, argv: list[str], cli: Callable[[str, list[str]], CLI] = CLI) -> CLI:
    """Run ``fit`` or ``validate`` with the given options and return the finished CLI.

    Raises:
        UserError: for a mistake that the user can correct.
        Interrupted: after Ctrl-C or SIGTERM, when the current step is saved.
        KeyboardInterrupt: after a second Ctrl-C, when Lightning has cleaned up.
    """
    try:
        return cli(command, argv)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except SIGTERMException as end:  # handled by Lightning: before training, or on several devices
        raise Interrupted("stopped by SIGTERM; the last checkpoint is kept", 143) from end
    except SystemExit as end:
        if end.code == 1:  # how Lightning ends the process after Ctrl-C
            raise KeyboardInterrupt from None
        raise
