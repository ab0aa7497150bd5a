"""The callback that records a run: evaluations, curves, samples, checkpoints and random state."""

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

from nanogpt.atomic import remove_partial_files, write_atomically
from nanogpt.errors import UserError
from nanogpt.generation.generate import sample_text
from nanogpt.insight.reference import Losses, best_losses
from nanogpt.models import count_parameters
from nanogpt.notices import notice
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training import resume
from nanogpt.training.checkpoint_saver import CheckpointSaver, stop_run
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.graceful_stop import GracefulStop
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.non_finite_guard import ADVICE, last_checkpoint

SAMPLE_CHARACTERS = 200  # at each evaluation
# regular expressions of tags, for TensorBoard's custom scalars
CHARTS = {
    "loss": {
        "train and val": ["Multiline", ["loss/train", "loss/val"]],
        "compared with n-gram counts": ["Multiline", ["loss/train", "loss/val", "ngrams/.*"]],
        "by position in the context": ["Multiline", ["loss_by_position/val"]],
    }
}


class RunRecorder(Callback):
    """Prints the evaluations and records settings, curves, samples and state of a run.

    The evaluation of step 0, and one that is due when a run resumes, are Lightning's sanity check
    over the whole of both loaders. After the last step the trainer is told to stop, and then
    evaluates unless that step was evaluated. This is one callback because Lightning calls each
    callback many times a step.

    Args:
        save_config: writes the whole config to a path, after the model and the data are built.
        print_header: prints the lines before training.
        same_folder: whether the run resumes in the folder of its earlier part.
        saver: saves the checkpoints; None to save none.
    """

    def __init__(
        self,
        save_config: Callable[[Path], object],
        print_header: Callable[[L.Trainer, LanguageModel, CharDataModule], None],
        same_folder: bool = False,
        saver: CheckpointSaver | None = None,
    ) -> None:
        self.save_config, self.print_header = save_config, print_header
        self.saver, self.same_folder = saver, same_folder
        self.graceful_stop = GracefulStop()
        self.history: list[Losses] = []
        self.random_state: dict[str, Tensor] = {}  # after the last completed step
        self.logged: dict[str, float] = {}  # the last metrics of a batch
        self.timer_start: float | None = None
        self.timer_step = 0
        self.fit_start = self.earlier_seconds = 0.0  # of this fit; of the earlier ones
        self.first_step = self.last_step = 0  # where this fit started; the last completed step

    @property
    def seconds(self) -> float:
        """The duration of all fits of this run."""
        return self.earlier_seconds + time.monotonic() - self.fit_start

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the header, and record the config and the hyperparameters."""
        assert isinstance(pl_module, LanguageModel)
        self.fit_start = time.monotonic()
        self.first_step = self.last_step = trainer.global_step
        data: CharDataModule = trainer.datamodule  # type: ignore[attr-defined]
        self.print_header(trainer, pl_module, data)
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        hparams = {**pl_module.hparams, **data.hparams}
        hparams |= {f"corpus_{name}": value for name, value in data.state_dict().items()}
        hparams |= {"precision": trainer.precision, "parameters": count_parameters(pl_module.net)}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in hparams.items()}
        trainer.logger.log_hyperparams(plain)
        if not self.same_folder:
            trainer.logger.experiment.add_custom_scalars(CHARTS)
        folder = Path(trainer.logger.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
        self.save_config(folder / "config.yaml")
        content = yaml.safe_dump(plain, allow_unicode=True)
        write_atomically(folder / "hparams.yaml", content.encode())

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the state of the run, before Lightning restores the optimizer."""
        checkpoint.pop("loops", None)  # saved by Lightning when it requeues a SLURM job
        resume.set_loop_counters(trainer, checkpoint["global_step"])
        resume.override_optimizer_settings(checkpoint, trainer, pl_module.hparams)
        interval = int(trainer.val_check_interval) // trainer.accumulate_grad_batches
        due = resume.evaluation_due(checkpoint, interval, trainer.max_steps)
        trainer.num_sanity_val_steps = math.inf if due else 0
        if saved := checkpoint.get(resume.RUN_STATE_KEY):
            self.history = [Losses(*losses) for losses in saved["history"]]
            self.random_state, self.logged = saved["random_state"], saved["logged"]
            self.earlier_seconds = saved["seconds"]
        else:
            notice(
                "the checkpoint has no evaluations and no random state (it was probably not saved "
                "by `fit`): the resumed run is not bit-exact"
            )

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the state of the run, for a bit-exact resume."""
        del checkpoint["loops"]  # computed by resume.py
        checkpoint["callbacks"].pop("Timer", None)  # --trainer.max_time limits one command
        if trainer.global_step != self.last_step:  # a SLURM job may be saved within a step
            self.random_state = resume.get_random_state(trainer.strategy.root_device)
        checkpoint[resume.RUN_STATE_KEY] = {
            "history": [[losses.step, losses.train, losses.val] for losses in self.history],
            "random_state": self.random_state,
            "logged": self.logged,
            "seconds": self.seconds,
        }

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let an evaluation that is due when a run resumes be a normal one."""
        self._install_handlers(trainer)
        if trainer.global_step:
            trainer.validating = True
            if self.same_folder and self.logged and trainer.logger is not None:
                # TensorBoard has discarded the events of this step
                trainer.logger.log_metrics(self.logged, trainer.global_step)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the random state and install the signal handlers."""
        self._install_handlers(trainer)
        device = trainer.strategy.root_device
        if self.random_state:
            resume.set_random_state(self.random_state, device)
        self.random_state = self.random_state or resume.get_random_state(device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """After each optimizer step, log the batch if that is due, and stop if requested."""
        step = trainer.global_step
        if step == self.last_step:
            return  # gradient accumulation
        self.last_step = step
        self.random_state = resume.get_random_state(trainer.strategy.root_device)
        if step == trainer.max_steps:
            trainer.should_stop = True  # after an evaluation
        if step % trainer.log_every_n_steps == 0 and trainer.logger is not None:  # type: ignore[attr-defined]
            self._log_batch(trainer, pl_module, outputs["loss"])
        elif self.timer_start is None:  # the first step after an evaluation
            self.timer_start, self.timer_step = time.perf_counter(), step
        self._stop_if_requested(trainer)

    def _log_batch(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, LanguageModel)
        assert trainer.logger is not None
        step, data = trainer.global_step, pl_module.trainer.datamodule  # type: ignore[attr-defined]
        metrics = {
            # .item() waits for a GPU, so that the time below is right
            "loss/batch": loss.item() * trainer.accumulate_grad_batches,
            "learning_rate": trainer.optimizers[0].param_groups[-1]["lr"],
        }
        pl_module.guard.check(pl_module)
        now = time.perf_counter()
        if self.timer_start is not None:
            characters = (step - self.timer_step) * data.batch_size * data.block_size
            metrics["characters_per_second"] = characters / (now - self.timer_start)
        trainer.logger.log_metrics(metrics, step)
        self.timer_start, self.timer_step, self.logged = now, step, metrics

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Abort the evaluation if a stop is requested; it will be due when the run resumes."""
        self._stop_if_requested(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print and log the losses, log a sample, and save the step."""
        assert isinstance(pl_module, LanguageModel)
        step, metrics = trainer.global_step, dict(pl_module.evaluation)
        if self.history and self.history[-1].step == step:
            return  # evaluated already: the run was told to stop between two micro-batches
        losses = Losses(step, metrics["loss/train"], metrics["loss/val"])
        pl_module.guard.check(pl_module)
        if not math.isfinite(losses.val):
            raise UserError(
                f"the val loss is {losses.val} at step {step}, training has diverged: {ADVICE}; "
                f"{last_checkpoint(trainer)}"
            )
        self.history.append(losses)
        pl_module.print(f"step {step}: train loss {losses.train:.4f}, val loss {losses.val:.4f}")
        self.timer_start = None
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            self._log_evaluation(trainer.logger, pl_module, metrics)
        if self.saver:
            self.saver.save(trainer, best_losses(self.history).step == step)
        if step != trainer.max_steps:
            self._stop_if_requested(trainer)

    def _log_evaluation(
        self, logger: TensorBoardLogger, model: LanguageModel, metrics: dict[str, float]
    ) -> None:
        step, data = self.history[-1].step, model.trainer.datamodule  # type: ignore[attr-defined]
        metrics["loss/best_val"] = best_losses(self.history).val
        for ngram in data.ngrams:
            metrics[f"ngrams/{ngram.name}_entropy"] = ngram.entropy
            metrics[f"ngrams/{ngram.name}_held_out"] = ngram.held_out
        if len(self.history) == 1:  # with the hyperparameters: the columns to sort runs by
            sortable = {name: metrics.pop(name) for name in ("loss/val", "loss/best_val")}
            logger.log_hyperparams(logger.hparams, sortable, step=step)
        logger.log_metrics(metrics, step)
        tokenizer = Tokenizer(model.hparams["vocabulary"])
        sample = sample_text(model.net, tokenizer, SAMPLE_CHARACTERS, seed=step)
        indented = "\n".join("    " + line for line in sample.split("\n"))  # Markdown code block
        logger.experiment.add_text("sample", indented, step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last step, even if it was not evaluated."""
        if self.saver:
            self.saver.save(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """After a second Ctrl-C, name the last checkpoint."""
        if isinstance(exception, KeyboardInterrupt):
            notice(f"Ctrl-C at step {trainer.global_step}; {last_checkpoint(trainer)}")

    def _install_handlers(self, trainer: L.Trainer) -> None:
        if trainer.world_size == 1:  # otherwise Lightning stops all processes together
            self.graceful_stop.install_handlers()

    def _stop_if_requested(self, trainer: L.Trainer) -> None:
        if self.graceful_stop.requested_by is not None:
            stop_run(trainer, self.saver, self.graceful_stop.requested_by)
