"""The LightningCLI of ``fit`` and ``validate``."""

from argparse import ArgumentError
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import Checkpoint, read_checkpoint
from nanogpt.insight.surprisal import check_stride
from nanogpt.notices import program
from nanogpt.option_errors import explain
from nanogpt.runs import Run, run_of, started_in
from nanogpt.training import console, hardware_settings, loggers, options, trainer_parts
from nanogpt.training.callback_checks import check_callbacks, check_classes
from nanogpt.training.callbacks.header import Header
from nanogpt.training.callbacks.run_record import RunRecord
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.callbacks.step_seed import StepSeed
from nanogpt.training.card_writer import write_card
from nanogpt.training.compatibility import check_compatible
from nanogpt.training.compiled import compiled_loss, plan_compilation
from nanogpt.training.config_loader import PARSER_MODE, complete_options, register_parser_mode
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.distillation import build_loss, find_teacher
from nanogpt.training.lightning_internals import OneCommandCLI, spawning_launcher
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.log_filter import filtered_logs
from nanogpt.training.one_line_errors import one_line_errors
from nanogpt.training.resume import ResumePoint, find_resume_point
from nanogpt.training.run_config import notice_differences, prepend_run_config
from nanogpt.training.several_processes import SpawnedLogs, early_signals, lock_run
from nanogpt.training.training_state import TrainingState, load_training_state


class CLI(OneCommandCLI):
    """Runs the command ``fit`` or ``validate`` with the options ``argv``."""

    title = ""  # of the progress bar
    warn_about_corpus = True  # whether to warn that another corpus replaces a missing one

    def __init__(self, command: str, argv: list[str]) -> None:
        self.modified_ns = 0
        self.checkpoint: Checkpoint | TrainingState | None = None
        self.resume_point: ResumePoint | None = None
        self.folder: Path | None = None  # of the run
        self.run_state = RunState()
        if not {"-h", "--help"} & set(argv):
            argv, self.checkpoint = prepend_run_config(command, argv)
            self.modified_ns = self.checkpoint.path.stat().st_mtime_ns if self.checkpoint else 0
        register_parser_mode()
        with filtered_logs(), ExitStack() as self.locks:
            super().__init__(
                command,
                options.HELP,
                model_class=LanguageModel,
                datamodule_class=CharDataModule,
                args=[command, *complete_options(argv)],
                save_config_callback=None,  # RunRecord saves it, whatever the logger
                seed_everything_default=1337,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                parser_kwargs={
                    "prog": program(),
                    "parser_mode": PARSER_MODE,
                    "exit_on_error": False,
                    "allow_abbrev": False,
                    command: {"exit_on_error": False, "parser_mode": PARSER_MODE},
                },
                trainer_defaults=options.TRAINER_DEFAULTS,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options that are not Lightning's."""
        options.add_options(parser, self.command)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the options; raise a one-line error if they are not valid."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            defaults = self.command_parser.get_defaults()
            names = [name for name in defaults.keys() if not name.startswith("callbacks.")]  # noqa: SIM118
            raise UserError(explain(str(error), names)) from error
        except (ValueError, TypeError, AttributeError, RecursionError) as error:  # malformed YAML
            raise UserError(
                f"a config is not valid ({str(error)[:100]!r}): write it as YAML in UTF-8"
            ) from error
        self.settings = self.config[self.command]
        options.check_sections(self.settings)
        options.resolve_model_settings(self.settings)
        options.check_derived(self.settings)

    def before_instantiate_classes(self) -> None:
        """Check the settings, find where to resume, and configure the process."""
        settings = self.settings
        if self.command == "fit":
            options.check_fit(settings)
            settings.teachers = [find_teacher(given) for given in settings.teachers]
            if settings.ckpt_path and not self.checkpoint:  # set in a config
                self.checkpoint = load_training_state(settings.ckpt_path)
                self.modified_ns = self.checkpoint.path.stat().st_mtime_ns
            if isinstance(self.checkpoint, TrainingState):
                self.find_resume_point(self.checkpoint)
        elif settings.trainer.limit_val_batches == 0:
            raise UserError("validate needs an evaluation: leave --trainer.limit_val_batches out")
        check_classes(loggers.as_list(settings.trainer.callbacks))
        settings.data.seed = int(settings.seed_everything)  # a bool has become a number
        self.config_text = self.dump(settings)  # before the loggers are placed
        hardware_settings.use_torchrun(settings.trainer)
        loggers.place_loggers(settings.trainer, self.resume_point)
        hardware_settings.configure_process()

    def find_resume_point(self, checkpoint: TrainingState) -> None:
        """Find where to resume, and print which settings have changed since."""
        self.resume_point = find_resume_point(checkpoint, self.modified_ns, self.settings.trainer)
        self.checkpoint = None  # frees its memory
        if self.resume_point.run:
            options.check_utf8("ckpt_path", self.resume_point.run.folder)
            saved = self.resume_point.run.config.read_text(encoding="utf-8")
            notice_differences(saved, self.dump(self.settings), self.dump(self.defaults))

    @property
    def defaults(self) -> Namespace:
        """The defaults of all settings."""
        return options.default_settings(self.command_parser, self.settings)

    def dump(self, settings: Namespace) -> str:
        """Return settings as YAML, to repeat the run from its start."""
        settings = settings.clone()
        settings.ckpt_path = None
        return str(self.command_parser.dump(settings, skip_none=False))

    def instantiate_classes(self) -> None:
        """Build the model, the data and the trainer; raise a one-line error if that fails."""
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(explain(str(error), ())) from error

    def instantiate_trainer(self, **kwargs: object) -> L.Trainer:
        """Build the trainer with the configured parts and this project's own."""
        config = self.config_init[self.command].trainer
        trainer_parts.replace_slow_precision(config)
        if self.command == "fit":
            named = vars(self.config_init[self.command].callbacks).values()
            point = self.resume_point
            self.folder = loggers.place_run(config, point, self.new_folder, partial(lock_run, self))
            trainer_parts.add_fit_parts(config, self.run_callbacks(), named, self.title)
        else:
            config.logger = config.enable_checkpointing = config.enable_progress_bar = False
            config.callbacks = None
        return super().instantiate_trainer(**kwargs)

    def new_folder(self, root: str) -> Path:
        """Return the folder of a new run, below ``default_root_dir``."""
        return loggers.new_folder(root)

    def run_callbacks(self) -> list[L.Callback]:
        """Return the callbacks of every run."""
        settings, warn = self.settings, self.warn_about_corpus
        header = Header(self.folder, settings.teachers, settings.compile, warn)
        parts = [SpawnedLogs(), header, StepSeed(settings.data.seed), self.run_state]
        if self.folder:
            trainer = self.config_init[self.command].trainer
            rows = loggers.earlier_rows(trainer.logger, self.resume_point)
            parts.insert(0, RunRecord(self.folder, self.config_text, rows))
        return parts

    def before_fit(self) -> None:
        """Set up data, loss and checkpoint, and find mistakes before anything is written."""
        if self.resume_point:  # first: it may replace a corpus that would have to be downloaded
            point = self.resume_point
            self.datamodule.restore_corpus(point.corpus, folder=started_in(point.run))
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self.datamodule.check_batch_size(self.trainer)
        check_callbacks(self.trainer, resumes=bool(self.resume_point))
        settings, device = self.settings, self.trainer.strategy.root_device
        loss = build_loss(settings.teachers, self.datamodule, device)
        plan = plan_compilation(settings.compile, self.model, self.datamodule, self.trainer)
        self.model.training_loss = compiled_loss(loss, plan, self.folder)
        vocabulary = self.datamodule.vocabulary
        hardware_settings.check_memory(self.model, len(vocabulary))
        self.model.use_network(self.model.build(len(vocabulary)), vocabulary)
        if self.resume_point:
            check_compatible(self.resume_point.hparams, self.model.hparams)
            self.config_init[self.command].ckpt_path = str(self.resume_point.path)
            self.config_init[self.command].weights_only = True
            self.resume_point.check_unchanged()
        self.locks.enter_context(early_signals(self.trainer))

    @cached_property
    def best_checkpoint(self) -> Checkpoint | None:
        """The best checkpoint of the finished run, if it saved one and this is the main process."""
        path = Run(self.folder).model() if self.folder else None
        checkpoint = read_checkpoint(path) if path and self.trainer.is_global_zero else None
        if checkpoint:
            kernels.install(checkpoint.model)
        return checkpoint

    def after_fit(self) -> None:
        """Print the result and write the card."""
        if spawning_launcher(self.trainer) and self.folder:
            self.run_state.read(Run(self.folder))
        if self.trainer.is_global_zero:
            console.print_end(self.trainer, self.run_state.step)
            history, reference = self.run_state.history, self.settings.reference
            console.print_result(self.datamodule, history, reference, self.best_checkpoint)
        self.write_card()

    def write_card(self) -> None:
        """Write a card of the run to its folder, unless ``--card false`` is given."""
        if self.settings.card and self.best_checkpoint and self.run_state.history:
            parts = (self.trainer, self.datamodule, self.run_state, self.best_checkpoint)
            write_card(*parts, self.settings, self.defaults)

    def before_validate(self) -> None:
        """Use the network, the vocabulary and the corpus of the checkpoint."""
        checkpoint, data = self.checkpoint, self.datamodule
        assert isinstance(checkpoint, Checkpoint)
        check_stride(self.settings.stride, checkpoint.model.block_size)
        data.block_size = min(data.block_size, checkpoint.model.block_size)  # of an ensemble
        vocabulary, run = checkpoint.tokenizer.vocabulary, run_of(checkpoint.path)
        data.restore_corpus(checkpoint.corpus, vocabulary, started_in(run))
        self.model.use_network(checkpoint.model, vocabulary)
        check_compatible(checkpoint.settings, self.model.hparams)
        self.config_init[self.command].ckpt_path = None  # Lightning would load it again

    def after_validate(self) -> None:
        """Print the evaluation."""
        assert isinstance(self.checkpoint, Checkpoint)
        parts = (self.trainer, self.datamodule, self.checkpoint)
        console.print_validation(*parts, self.settings.stride)


def run(command: str, argv: list[str], cli: Callable[[str, list[str]], CLI] = CLI) -> CLI:
    """Run ``fit`` or ``validate`` with the given options and return the finished CLI.

    The exceptions are those of ``one_line_errors``.
    """
    with one_line_errors():
        return cli(command, argv)
