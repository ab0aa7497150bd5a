"""Logs a sample of text at each evaluation, to the loggers that take text."""

from copy import deepcopy

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from nanogpt.generation.generate import sample_text
from nanogpt.generation.quantization import set_weights
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training.evaluations import is_evaluation
from nanogpt.training.lightning_module import LanguageModel


class SampleWriter(Callback):
    """Logs a sample of text at each evaluation to TensorBoard or Weights & Biases.

    Args:
        length: number of characters.
    """

    def __init__(self, length: int = 200) -> None:
        self.length = length

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log a sample drawn with the step as seed, in bf16 if that is the precision of the run.

        The random state is unchanged.
        """
        loggers = [logger for logger in trainer.loggers if takes_text(logger)]
        if not is_evaluation(trainer) or not trainer.is_global_zero or not loggers:
            return
        assert isinstance(pl_module, LanguageModel)
        step, tokenizer = trainer.global_step, Tokenizer(pl_module.hparams["vocabulary"])
        net = pl_module.net
        if str(trainer.precision).startswith("bf16"):  # as `predict` samples on such hardware
            net = set_weights(deepcopy(net), "bf16", str(pl_module.device))
        sample = sample_text(net, tokenizer, self.length, seed=step)
        for logger in loggers:
            log_text(logger, "sample", sample, step)


def takes_text(logger: Logger) -> bool:
    """Return whether ``log_text`` supports a logger."""
    return isinstance(logger, TensorBoardLogger | WandbLogger)


def log_text(logger: Logger, tag: str, text: str, step: int) -> None:
    """Log a text, verbatim."""
    if isinstance(logger, TensorBoardLogger):
        indented = "\n".join("    " + line for line in text.split("\n"))  # Markdown code block
        logger.experiment.add_text(tag, indented, step)
    elif isinstance(logger, WandbLogger):
        logger.log_text(tag, columns=["step", "text"], data=[[str(step), text]], step=step)
