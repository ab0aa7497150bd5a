"""A progress bar over all optimizer steps."""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class StepBar(ProgressBar):
    """One bar on stderr over all optimizer steps, with the remaining time.

    Args:
        title: text before the bar.
    """

    shows_metrics = False

    def __init__(self, title: str = "") -> None:
        super().__init__()
        self.title = title
        self.is_enabled = True
        self.bar: tqdm[Any] | None = None
        self.step = 0  # that the bar shows

    def disable(self) -> None:
        """Hide the bar. Lightning calls this on every process but the first."""
        self.is_enabled = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print a line to stdout, above the bar."""
        tqdm.write(sep.join(map(str, args)), file=sys.stdout)
        sys.stdout.flush()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar at the current step."""
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
        """Advance the bar after an optimizer step."""
        if self.bar is not None and not self.bar.disable:
            self.bar.update(trainer.global_step - self.step)
            self.step = trainer.global_step

    def on_train_end(self, *args: Any) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        """Remove the bar before the error is printed."""
        self.on_train_end()
