"""What a run shows and leaves: its progress, its evaluations and its curves."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from nanogpt.errors import UserError
from nanogpt.generation.generate import sample_text
from nanogpt.insight.reference import Losses, best
from nanogpt.models import count_parameters
from nanogpt.notices import notice
from nanogpt.runs import Run
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training.data import CharacterData
from nanogpt.training.module import LanguageModel
from nanogpt.training.report import introduce

SAMPLE_CHARACTERS = 200  # at each evaluation
# TensorBoard draws them for every run that is chosen: the reference's curve is such a run
CHARTS = {
    "loss": {
        "train and val": ["Multiline", ["loss/train", "loss/val"]],
        "beside n-gram counts": ["Multiline", ["loss/train", "loss/val", "ngrams/.*"]],
        "by position in the context": ["Multiline", ["loss_by_position/val"]],
    }
}


class StepBar(ProgressBar):
    """One bar over all optimizer steps, with the time left, on a terminal's stderr.

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str = "") -> None:
        super().__init__()
        self.title = title
        self.is_enabled = True
        self.bar: tqdm[Any] | None = None

    def disable(self) -> None:
        """Show nothing: Lightning calls it on all processes but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self.is_enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line to stdout, above the bar."""
        tqdm.write(sep.join(map(str, args)), file=sys.stdout)
        sys.stdout.flush()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar where the run stands."""
        self.bar = tqdm(
            desc=self.title or None,
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            unit="step",
            disable=not self.is_enabled,
            dynamic_ncols=True,
            leave=False,
        )
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Move on, once an optimizer step is done."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(trainer.global_step - self.step)
            self.step = trainer.global_step

    def on_train_end(self, *args: Any) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Take the bar away, so that the error stands alone."""
        self.on_train_end()


class Recorder(Callback):
    """Prints every evaluation, and records the run: its settings, curves and samples.

    Step 0 is Lightning's sanity check over the whole of both loaders; after the last step the
    trainer is told to stop, on which it evaluates once more if that step had no evaluation.
    One callback does all, since Lightning calls each one many times a step.

    Args:
        save_config: writes the whole configuration to a path, once data and model are sound.
        introduce: says what is about to be trained.
    """

    def __init__(
        self,
        save_config: Callable[[Path], object],
        introduce: Callable[[L.Trainer, LanguageModel, CharacterData], None] = introduce,
    ) -> None:
        self.save_config, self.introduce = save_config, introduce
        self.history: list[Losses] = []
        self.clock: float | None = None
        self.step = self.logged = 0  # when the clock was started, and the last one logged
        self.begun = self.seconds = 0.0  # when the fit began, and how long it took in all
        self.first_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Introduce the run; record the configuration, and what is really trained on."""
        assert isinstance(pl_module, LanguageModel)
        self.begun, self.first_step = time.monotonic(), trainer.global_step
        data: CharacterData = trainer.datamodule  # type: ignore[attr-defined]
        self.introduce(trainer, pl_module, data)
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        settings = {**pl_module.hparams, **data.hparams}
        settings |= {f"corpus_{name}": value for name, value in data.state_dict().items()}
        settings |= {"precision": trainer.precision, "parameters": count_parameters(pl_module.net)}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items()}
        trainer.logger.log_hyperparams(plain)  # into hparams.yaml
        trainer.logger.experiment.add_custom_scalars(CHARTS)
        self.save_config(Path(trainer.logger.log_dir) / "config.yaml")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Log the batch on the steps that are due, and ask for the evaluation after the last."""
        step = trainer.global_step
        if step == trainer.max_steps:
            trainer.should_stop = True
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step % interval == 0 and step != self.logged and trainer.logger is not None:
            self.logged = step
            metrics = {
                # on a GPU .item() waits, so that the clock is right
                "loss/batch": outputs["loss"].item() * trainer.accumulate_grad_batches,
                "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            }
            now = time.perf_counter()
            if self.clock is not None:
                data: CharacterData = trainer.datamodule  # type: ignore[attr-defined]
                characters = (step - self.step) * data.batch_size * data.block_size
                metrics["characters_per_second"] = characters / (now - self.clock)
            trainer.logger.log_metrics(metrics, step)
            self.clock, self.step = now, step
        elif self.clock is None:  # evaluating and saving took their time: training goes on now
            self.clock, self.step = time.perf_counter(), step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses; log them and a sample."""
        assert isinstance(pl_module, LanguageModel)
        step, metrics = trainer.global_step, dict(pl_module.evaluation)
        losses = Losses(step, metrics["loss/train"], metrics["loss/val"])
        self.history.append(losses)
        if not math.isfinite(losses.val):
            raise UserError(
                f"the val loss is {losses.val} at step {step}: the run has diverged; lower "
                "--model.learning_rate, or clip with --trainer.gradient_clip_val 1"
            )
        pl_module.print(f"step {step}: train loss {losses.train:.4f}, val loss {losses.val:.4f}")
        self.clock = None
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            metrics["loss/best_val"] = best(self.history).val
            for ngram in trainer.datamodule.ngrams:  # type: ignore[attr-defined]
                metrics[f"ngrams/{ngram.name}_entropy"] = ngram.entropy
                metrics[f"ngrams/{ngram.name}_held_out"] = ngram.held_out
            if len(self.history) == 1:  # the hyperparameters, and the losses to sort runs by
                shown = {name: metrics.pop(name) for name in ("loss/val", "loss/best_val")}
                trainer.logger.log_hyperparams(trainer.logger.hparams, shown, step=step)
            trainer.logger.log_metrics(metrics, step)
            self._log_sample(trainer.logger, pl_module, step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the time; keep the last step also of a run that never evaluates."""
        self.seconds = time.monotonic() - self.begun
        if trainer.checkpoint_callbacks and not self.history and trainer.log_dir:
            trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints" / "last.ckpt")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Say, after Ctrl-C, what is left."""
        if isinstance(exception, KeyboardInterrupt):
            run = Run(Path(trainer.log_dir)) if trainer.logger and trainer.log_dir else None
            kept = run.checkpoint("last") if run else None
            where = f"kept up to the last evaluation in {kept}" if kept else "nothing is kept yet"
            notice(f"Ctrl-C at step {trainer.global_step}; {where}")

    @staticmethod
    def _log_sample(logger: TensorBoardLogger, model: LanguageModel, step: int) -> None:
        tokenizer = Tokenizer(model.hparams["vocabulary"])
        sample = sample_text(model.net, tokenizer, SAMPLE_CHARACTERS, seed=step)
        indented = "\n".join("    " + line for line in sample.split("\n"))  # Markdown's code block
        logger.experiment.add_text("sample", indented, step)
