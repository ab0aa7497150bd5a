"""What a run records and leaves: its evaluations, its curves and its checkpoints."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from nanogpt.atomic import sweep, write_atomically
from nanogpt.errors import UserError
from nanogpt.generation.generate import sample_text
from nanogpt.insight.reference import Losses, best
from nanogpt.models import count_parameters
from nanogpt.notices import notice
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training import resume
from nanogpt.training.checkpoints import Keeper, stop
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.non_finite_guard import ADVICE, kept
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.console import introduce
from nanogpt.training.graceful_stop import Signals

SAMPLE_CHARACTERS = 200  # at each evaluation
# TensorBoard draws them for every run that is chosen: the reference's curve is such a run
CHARTS = {
    "loss": {
        "train and val": ["Multiline", ["loss/train", "loss/val"]],
        "beside n-gram counts": ["Multiline", ["loss/train", "loss/val", "ngrams/.*"]],
        "by position in the context": ["Multiline", ["loss_by_position/val"]],
    }
}


class Recorder(Callback):
    """Prints every evaluation, and records the run: its settings, curves, samples and state.

    Step 0 is Lightning's sanity check over the whole of both loaders, and so is an evaluation
    that a resumed run still owes; after the last step the trainer is told to stop, on which it
    evaluates once more if that step had no evaluation. One callback does all, since Lightning
    calls each one many times a step.

    Args:
        save_config: writes the whole configuration to a path, once data and model are sound.
        introduce: says what is about to be trained.
        keeper: of the checkpoints, if any are to be kept.
        continues: whether the folder holds the run's earlier part.
    """

    def __init__(
        self,
        save_config: Callable[[Path], object],
        introduce: Callable[[L.Trainer, LanguageModel, CharDataModule], None] = introduce,
        keeper: Keeper | None = None,
        continues: bool = False,
    ) -> None:
        self.save_config, self.introduce = save_config, introduce
        self.keeper, self.continues = keeper, continues
        self.signals = Signals()
        self.history: list[Losses] = []
        self.random: dict[str, Tensor] = {}  # the generators' state when the last step was done
        self.logged: dict[str, float] = {}  # of that step
        self.clock: float | None = None
        self.step = 0  # when the clock was started
        self.begun = self.earlier = 0.0  # when the fit began; seconds that earlier ones took
        self.first_step = self.done = 0  # where the fit began, and how many steps are done

    @property
    def seconds(self) -> float:
        """How long all fits of this run have taken, in all."""
        return self.earlier + time.monotonic() - self.begun

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Introduce the run; record the configuration, and what is really trained on."""
        assert isinstance(pl_module, LanguageModel)
        self.begun, self.first_step = time.monotonic(), trainer.global_step
        self.done = self.first_step
        data: CharDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.introduce(trainer, pl_module, data)
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        settings = {**pl_module.hparams, **data.hparams}
        settings |= {f"corpus_{name}": value for name, value in data.state_dict().items()}
        settings |= {"precision": trainer.precision, "parameters": count_parameters(pl_module.net)}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items()}
        trainer.logger.log_hyperparams(plain)
        if not self.continues:
            trainer.logger.experiment.add_custom_scalars(CHARTS)
        folder = Path(trainer.logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.save_config(folder / "config.yaml")
        written = yaml.safe_dump(plain, allow_unicode=True)
        write_atomically(folder / "hparams.yaml", written.encode())

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the run up where a checkpoint left it, before Lightning takes up the rest."""
        checkpoint.pop("loops", None)  # of a requeued SLURM job, or an older version
        resume.set_position(trainer, checkpoint["global_step"])
        resume.use_settings(trainer, pl_module.hparams, checkpoint)
        interval = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        owed = resume.is_owed(checkpoint, interval, trainer.max_steps)
        trainer.num_sanity_val_steps = math.inf if owed else 0
        if saved := checkpoint.get(resume.KEY):
            self.history = [Losses(*losses) for losses in saved["history"]]
            self.random, self.logged = saved["random"], saved["logged"]
            self.earlier = saved["seconds"]
        else:
            notice("an older checkpoint, without the curve so far and the state of chance")

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what a run needs to go on as if it had not been interrupted."""
        del checkpoint["loops"]  # resume.py works it out
        checkpoint["callbacks"].pop("Timer", None)  # a time limit is that of one command
        if trainer.global_step != self.done:  # a SLURM job is saved at any moment
            self.random = resume.random_state(trainer.strategy.root_device)
        checkpoint[resume.KEY] = {
            "history": [[losses.step, losses.train, losses.val] for losses in self.history],
            "random": self.random,
            "logged": self.logged,
            "seconds": self.seconds,
        }

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make an evaluation that is owed one like any other."""
        self._listen(trainer)
        if trainer.global_step:
            trainer.validating = True
            if self.continues and self.logged and trainer.logger is not None:
                trainer.logger.log_metrics(self.logged, trainer.global_step)  # forgotten with it

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put chance where it was; from now on, stop in an orderly way."""
        self._listen(trainer)
        device = trainer.strategy.root_device
        if self.random:
            resume.set_random_state(self.random, device)
        self.random = self.random or resume.random_state(device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Once a step is done: log it if that is due, and stop if that is asked for."""
        step = trainer.global_step
        if step == self.done:
            return  # gradients accumulate
        self.done, self.random = step, resume.random_state(trainer.strategy.root_device)
        if step == trainer.max_steps:
            trainer.should_stop = True  # and evaluate
        if step % trainer.log_every_n_steps == 0 and trainer.logger is not None:  # type: ignore[attr-defined]
            self._log_batch(trainer, pl_module, outputs["loss"])
        elif self.clock is None:  # evaluating and saving took their time: training goes on now
            self.clock, self.step = time.perf_counter(), step
        if self.signals.received:
            self._stop(trainer)

    def _log_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, LanguageModel)
        assert trainer.logger is not None
        step, data = trainer.global_step, pl_module.trainer.datamodule  # type: ignore[attr-defined]
        metrics = {
            # on a GPU .item() waits, so that the clock is right
            "loss/batch": loss.item() * trainer.accumulate_grad_batches,
            "learning_rate": trainer.optimizers[0].param_groups[-1]["lr"],
        }
        pl_module.watch.check(pl_module)
        now = time.perf_counter()
        if self.clock is not None:
            characters = (step - self.step) * data.batch_size * data.block_size
            metrics["characters_per_second"] = characters / (now - self.clock)
        trainer.logger.log_metrics(metrics, step)
        self.clock, self.step, self.logged = now, step, metrics

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop amid an evaluation if that is asked for: it will be owed."""
        if self.signals.received:
            self._stop(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses, log them and a sample, and keep the step."""
        assert isinstance(pl_module, LanguageModel)
        step, metrics = trainer.global_step, dict(pl_module.evaluation)
        if self.history and self.history[-1].step == step:
            return  # told to stop while gradients accumulated
        losses = Losses(step, metrics["loss/train"], metrics["loss/val"])
        pl_module.watch.check(pl_module)
        if not math.isfinite(losses.val):
            raise UserError(
                f"the val loss is {losses.val} at step {step}: the run has diverged; {ADVICE}; "
                f"{kept(trainer)}"
            )
        self.history.append(losses)
        pl_module.print(f"step {step}: train loss {losses.train:.4f}, val loss {losses.val:.4f}")
        self.clock = None
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            self._log_evaluation(trainer.logger, pl_module, metrics)
        if self.keeper:
            self.keeper.keep(trainer, best(self.history).step == step)
        if self.signals.received and step != trainer.max_steps:
            self._stop(trainer)

    def _log_evaluation(
        self, logger: TensorBoardLogger, model: LanguageModel, metrics: dict[str, float]
    ) -> None:
        step, data = self.history[-1].step, model.trainer.datamodule  # type: ignore[attr-defined]
        metrics["loss/best_val"] = best(self.history).val
        for ngram in data.ngrams:
            metrics[f"ngrams/{ngram.name}_entropy"] = ngram.entropy
            metrics[f"ngrams/{ngram.name}_held_out"] = ngram.held_out
        if len(self.history) == 1:  # the hyperparameters, and the losses to sort runs by
            shown = {name: metrics.pop(name) for name in ("loss/val", "loss/best_val")}
            logger.log_hyperparams(logger.hparams, shown, step=step)
        logger.log_metrics(metrics, step)
        tokenizer = Tokenizer(model.hparams["vocabulary"])
        sample = sample_text(model.net, tokenizer, SAMPLE_CHARACTERS, seed=step)
        indented = "\n".join("    " + line for line in sample.split("\n"))  # Markdown's code block
        logger.experiment.add_text("sample", indented, step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the last step, also of a run that never evaluates."""
        if self.keeper:
            self.keeper.keep(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say, after a Ctrl-C that would not wait, what is left."""
        if isinstance(exception, KeyboardInterrupt):
            notice(f"Ctrl-C at step {trainer.global_step}; {kept(trainer)}")

    def _listen(self, trainer: L.Trainer) -> None:
        if trainer.world_size == 1:  # else Lightning stops all processes together
            self.signals.listen()

    def _stop(self, trainer: L.Trainer) -> None:
        assert self.signals.received is not None
        stop(trainer, self.keeper, self.signals.received)
