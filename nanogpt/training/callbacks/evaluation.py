"""Prints the losses of each evaluation, and logs what they are compared with."""

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.training.evaluations import is_evaluation

# regular expressions of tags, for TensorBoard's custom scalars
CHARTS = {
    "loss": {
        "train and val": ["Multiline", ["loss/train", "loss/val"]],
        "compared with n-gram counts": ["Multiline", ["loss/train", "loss/val", "ngrams/.*"]],
        "by position in the context": ["Multiline", ["loss_by_position/val"]],
    }
}


class EvaluationReport(Callback):
    """Prints ``step N: train loss …, val loss …``, and logs the best val loss and n-gram losses.

    The losses themselves are logged by the ``LanguageModel``. The best val loss is known only after
    the evaluation, when Lightning's ``log`` is not available, and is passed to the loggers.
    """

    def __init__(self) -> None:
        self.best_val_loss = float("inf")

    def state_dict(self) -> dict[str, float]:
        """Return the best val loss so far."""
        return {"best_val_loss": self.best_val_loss}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        """Restore the best val loss."""
        self.best_val_loss = state_dict["best_val_loss"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lay out TensorBoard's custom charts."""
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not trainer.global_step:
                logger.experiment.add_custom_scalars(CHARTS)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the losses of n-gram counts."""
        if not is_evaluation(trainer):
            return
        for ngram in getattr(trainer.datamodule, "ngrams", ()):  # type: ignore[attr-defined]
            pl_module.log(f"ngrams/{ngram.name}_entropy", ngram.entropy, sync_dist=True)
            pl_module.log(f"ngrams/{ngram.name}_held_out", ngram.held_out, sync_dist=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the losses, and log the best val loss so far, except that of step 0."""
        metrics, step = trainer.callback_metrics, trainer.global_step
        if not is_evaluation(trainer) or "loss/val" not in metrics:
            return
        splits = [name for name in ("train", "val") if f"loss/{name}" in metrics]
        losses = [f"{name} loss {metrics[f'loss/{name}']:.4f}" for name in splits]
        pl_module.print(f"step {step}: {', '.join(losses)}")
        best = min(self.best_val_loss, metrics["loss/val"].item())
        unlogged = {k: v.item() for k, v in metrics.items() if k != "step"} if not step else {}
        for logger in trainer.loggers:
            if unlogged:  # by Lightning, for which step 0 is a sanity check
                logger.log_metrics(unlogged, step)
            if isinstance(logger, TensorBoardLogger) and not step:  # a column to sort runs by
                logger.log_hyperparams(logger.hparams, {"loss/best_val": best}, step)
            else:
                logger.log_metrics({"loss/best_val": best}, step)
        self.best_val_loss = best if step else self.best_val_loss
