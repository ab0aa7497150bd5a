"""What a run shows: its progress, its evaluations, its curves. Each callback is one of these."""

import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from tqdm import tqdm

from nanogpt.generation.decoding import sample_text
from nanogpt.insight.reference import Losses
from nanogpt.models import count_parameters
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training.data import CharacterData
from nanogpt.training.machine import use_few_threads
from nanogpt.training.module import LanguageModel
from nanogpt.training.report import stand_in_warning

SAMPLE_CHARACTERS = 200  # at each evaluation
LONG_ON_A_CPU = 2e14  # FLOP of training that a CPU takes more than ten minutes or so for


class StepBar(ProgressBar):
    """One bar over all optimizer steps, with the time left, on a terminal's stderr."""

    def __init__(self) -> None:
        super().__init__()
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
            total=trainer.max_steps if trainer.max_steps > 0 else None,
            initial=trainer.global_step,
            unit="step",
            disable=not (self.is_enabled and sys.stderr.isatty()),
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


class Evaluations(Callback):
    """Prints and logs every evaluation, step 0 and the last step among them.

    Step 0 is Lightning's sanity check over the whole of both loaders; after the last step the
    trainer is told to stop, on which it evaluates once more if that step had no evaluation.
    """

    def __init__(self) -> None:
        self.history: list[Losses] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the settings, what was really trained on, and the chart that losses share."""
        assert isinstance(pl_module, LanguageModel)
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        data: CharacterData = trainer.datamodule  # type: ignore[attr-defined]
        settings = {**pl_module.hparams, **data.hparams}
        settings |= {f"corpus_{name}": value for name, value in data.state_dict().items()}
        settings |= {"precision": trainer.precision, "parameters": count_parameters(pl_module.net)}
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items()}
        trainer.logger.log_hyperparams(plain)  # into hparams.yaml
        chart = ["Multiline", ["loss/train", "loss/val"]]
        trainer.logger.experiment.add_custom_scalars({"loss": {"train and val": chart}})

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ask for the evaluation after the last step."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses; log them and a sample."""
        assert isinstance(pl_module, LanguageModel)
        step, metrics = trainer.global_step, pl_module.evaluation
        losses = Losses(step, metrics["loss/train"], metrics["loss/val"])
        self.history.append(losses)
        pl_module.print(f"step {step}: train loss {losses.train:.4f}, val loss {losses.val:.4f}")
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            if trainer.sanity_checking:  # the hyperparameters, and the loss to sort runs by
                shown = {"loss/val": losses.val}
                trainer.logger.log_hyperparams(trainer.logger.hparams, shown, step=0)
            trainer.logger.log_metrics(metrics, step)
            _log_sample(trainer.logger, pl_module, step)


def _log_sample(logger: TensorBoardLogger, model: LanguageModel, step: int) -> None:
    tokenizer = Tokenizer(model.hparams["vocabulary"])
    sample = sample_text(model.net, tokenizer, SAMPLE_CHARACTERS, seed=step)
    indented = "\n".join("    " + line for line in sample.split("\n"))  # Markdown's code block
    logger.experiment.add_text("sample", indented, step)


class TrainingCurve(Callback):
    """Logs, every ``log_every_n_steps``, the batch's loss, the learning rate and the speed."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self.clock, self.step = time.perf_counter(), trainer.global_step

    on_validation_end = on_train_start  # evaluating is no training time

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Log, on the steps that are due."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.logger is None or step % interval or step == self.step:
            return
        loss = outputs["loss"].item()  # on a GPU this waits, so that the clock is right
        now = time.perf_counter()
        data = trainer.datamodule  # type: ignore[attr-defined]
        characters = (step - self.step) * data.batch_size * data.block_size
        metrics = {
            "loss/batch": loss * trainer.accumulate_grad_batches,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "characters_per_second": characters / (now - self.clock),
        }
        trainer.logger.log_metrics(metrics, step)
        self.clock, self.step = now, step


class Introduction(Callback):
    """Says before training what is trained, on what; and, on a slow machine, how long it takes."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the corpus, the size of the model, where it runs and for how long."""
        assert isinstance(pl_module, LanguageModel)
        data: CharacterData = trainer.datamodule  # type: ignore[attr-defined]
        if data.corpus.stands_in_for and trainer.is_global_zero:
            stand_in_warning(data.corpus)
        n_train, n_val = len(data.splits["train"]), len(data.splits["val"])
        pl_module.print(
            f"corpus {data.corpus.name}: {n_train + n_val:,} characters, "
            f"{len(data.tokenizer.vocabulary)} distinct; {n_train:,} to train on, {n_val:,} to "
            "validate"
        )
        n_parameters = count_parameters(pl_module.net)
        pl_module.print(f"{n_parameters / 1e6} M parameters")
        device = trainer.strategy.root_device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        pl_module.print(f"training on {where} in {trainer.precision}, in {trainer.log_dir}")
        if device.type != "cpu":
            return
        flop_per_step = 6 * n_parameters * data.batch_size * data.block_size
        use_few_threads(flop_per_step)
        if flop_per_step * trainer.max_steps > LONG_ON_A_CPU:
            hours = seconds_per_step(trainer, pl_module, data) * trainer.max_steps / 3600
            pl_module.print(
                f"this will take about {hours:.1f} hours on this CPU; configs/quickstart.yaml "
                "trains a smaller model in three minutes"
            )


def seconds_per_step(trainer: L.Trainer, model: LanguageModel, data: CharacterData) -> float:
    """Measure a training step on a sixteenth of a batch; leaves random state as it was."""
    windows = max(data.batch_size // 16, 1)
    ids = torch.zeros(windows, data.block_size, dtype=torch.long)
    seconds = 0.0
    with isolate_rng(), trainer.precision_plugin.train_step_context():
        for _ in range(2):  # the first touches fresh memory
            begin = time.perf_counter()
            model.training_step((ids, ids), 0).backward()
            seconds = time.perf_counter() - begin
    model.zero_grad()
    return seconds * data.batch_size / windows


def checkpoints() -> ModelCheckpoint:
    """Keep ``best.ckpt``, by the val loss, and ``last.ckpt``, renewed at every evaluation."""
    return ModelCheckpoint(
        filename="best",
        monitor="loss/val",
        save_top_k=1,
        save_last=True,
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
