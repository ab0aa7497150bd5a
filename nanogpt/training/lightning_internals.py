"""Every private attribute of Lightning and jsonargparse that is used, and why.

``tests/training/test_lightning_internals.py`` pins each of them. All other modules use the public
API only.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher


def set_loop_counters(trainer: L.Trainer, step: int) -> None:
    """Set the counters of Lightning's loops to the end of an optimizer step.

    Lightning restores them only as they were saved: in the middle of an evaluation, and for the
    same number of micro-batches.
    """
    loop = trainer.fit_loop.epoch_loop
    batches = step * trainer.accumulate_grad_batches
    stages = ("ready", "started", "processed", "completed")
    loop.batch_progress.total.load_state_dict(dict.fromkeys(stages, batches))
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.on_load_checkpoint({"_batches_that_stepped": step})


def let_any_step_be_the_last(trainer: L.Trainer) -> None:
    """Let ``trainer.should_stop`` end a run at any step from ``min_steps``.

    With ``min_steps``, Lightning waits for the end of the first epoch, which has none here; with
    more than ``max_steps``, it does not evaluate after the last step.
    """
    trainer.fit_loop.min_epochs = 0
    loop = trainer.fit_loop.epoch_loop
    if loop.min_steps and loop.max_steps >= 0:
        loop.min_steps = min(loop.min_steps, loop.max_steps)


def spawning_launcher(trainer: L.Trainer) -> _MultiProcessingLauncher | None:
    """Return the launcher of ``ddp_spawn`` and its like, whose processes have copies of all."""
    launcher = trainer.strategy.launcher
    return launcher if isinstance(launcher, _MultiProcessingLauncher) else None


class OneCommandCLI(LightningCLI):
    """A ``LightningCLI`` with one subcommand: building a parser takes a tenth of a second.

    Args:
        command: name of a method of the trainer.
        help_texts: by option, replacing those that jsonargparse takes from Lightning's docstrings.
        kwargs: arguments of ``LightningCLI``.
    """

    def __init__(self, command: str, help_texts: Mapping[str, str], **kwargs: Any) -> None:
        self.command, self.help_texts = command, help_texts
        super().__init__(**kwargs)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return only the current command."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    @property
    def command_parser(self) -> LightningArgumentParser:
        """The parser of the command; LightningCLI has no public way to it."""
        return self._parser(self.command)

    def _prepare_subcommand_parser(self, *args: Any, **kwargs: Any) -> LightningArgumentParser:
        """Replace help texts; only this hook sees all options."""
        parser = super()._prepare_subcommand_parser(*args, **kwargs)
        for action in parser._actions:
            action.help = self.help_texts.get(action.dest, action.help)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Do not let the hyperparameters of a checkpoint override the given settings."""
