"""What a run shows: its progress, its evaluations, its curves. Each callback is one of these."""

import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from nanogpt.generation.decoding import sample_text
from nanogpt.models import count_parameters

SAMPLE_CHARACTERS = 200  # at each evaluation


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

    on_exception = on_train_end


class Evaluations(Callback):
    """Prints and logs every evaluation, step 0 and the last step among them.

    Step 0 is Lightning's sanity check over the whole of both loaders; after the last step the
    trainer is told to stop, on which it evaluates once more if that step had no evaluation.
    """

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        """Ask for the evaluation after the last step."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses; log them and a sample."""
        metrics: dict[str, float] = pl_module.evaluation  # type: ignore[assignment]
        if trainer.state.fn != "fit":
            return
        step = trainer.global_step
        losses = [f"{name} loss {metrics[f'loss/{name}']:.4f}" for name in ("train", "val")]
        pl_module.print(f"step {step}: {', '.join(losses)}")
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        if trainer.sanity_checking:  # declares the hyperparameters, and the loss to sort runs by
            settings = {**pl_module.hparams, **trainer.datamodule.hparams}  # type: ignore[attr-defined]
            settings = {k: str(v) if isinstance(v, tuple) else v for k, v in settings.items()}
            logger.log_hyperparams(settings, {"loss/val": metrics["loss/val"]}, step=0)
            chart = ["Multiline", ["loss/train", "loss/val"]]
            logger.experiment.add_custom_scalars({"loss": {"train and val": chart}})
            metrics = {name: value for name, value in metrics.items() if name != "loss/val"}
        logger.log_metrics(metrics, step)
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        sample = sample_text(pl_module.net, tokenizer, SAMPLE_CHARACTERS, seed=step)  # type: ignore[arg-type]
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
        step = trainer.global_step
        if trainer.logger is None or step % trainer.log_every_n_steps or step == self.step:
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
        """Print the size of the model, and where and how it runs."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        sizes = {name: len(split) for name, split in data.splits.items()}
        pl_module.print(
            f"corpus {data.corpus.name}: {sum(sizes.values()):,} characters, "
            f"{len(data.tokenizer.vocabulary)} distinct; "
            f"{sizes['train']:,} to train on, {sizes['val']:,} to validate"
        )
        pl_module.print(f"{count_parameters(pl_module.net) / 1e6} M parameters")  # type: ignore[arg-type]
        device = trainer.strategy.root_device
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        pl_module.print(f"training on {where} in {trainer.precision}, in {trainer.log_dir}")


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
