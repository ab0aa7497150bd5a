"""The LightningModule: training step, evaluation and optimizer of a language model."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation.generate import TextModel
from nanogpt.models.registry import (
    Model,
    build_config,
    build_model,
    count_parameters,
    plain_settings,
)
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training.compatibility import check_compatible
from nanogpt.training.losses import Loss, loss_figures, next_character_loss
from nanogpt.training.optimizer import NO_MATRICES, OptimizerName, build_optimizer, is_fused
from nanogpt.training.schedule import Schedule, build_scheduler, is_scheduled


class LanguageModel(L.LightningModule):
    """A character-level language model, trained to predict the next character.

    All arguments are plain values, so that a checkpoint is enough to rebuild the model.

    Args:
        architecture: ``bigram``, ``gpt``, ``ablated_gpt`` (a GPT without some of its parts, for the
            ladder) or ``modern`` (a GPT with later improvements).
        optimizer: ``adamw``, or ``muon`` for the matrices of the blocks with AdamW for the rest.
        muon_learning_rate: peak learning rate of Muon.
        learning_rate: peak learning rate of AdamW.
        betas: AdamW's decay rates of the two moments.
        weight_decay: decoupled weight decay of all parameters, relative to the learning rate.
        schedule: ``constant``; ``cosine``, to a tenth at the last step; or ``linear``, to zero over
            the last 60% of the steps.
        warmup_steps: number of steps over which the learning rate rises linearly.
        vocabulary: the distinct characters, in order; null takes those of the data module, and
            builds the network when training starts.
        settings: of the architecture, such as ``n_layer``; see its config in ``nanogpt/models/``.

    Raises:
        UserError: if a setting is out of range, or the architecture does not have it.
    """

    def __init__(
        self,
        architecture: str = "gpt",
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 3e-4,
        muon_learning_rate: float = 0.02,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        vocabulary: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        rates = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
        for name, rate in rates.items():
            if not 0 < rate < math.inf:
                raise UserError(f"{name} must be positive and finite, not {rate}")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas must lie in [0, 1), not {betas}")
        if not 0 <= weight_decay < math.inf or warmup_steps < 0:
            raise UserError(
                f"weight_decay and warmup_steps must be at least 0 and finite, not {weight_decay} "
                f"and {warmup_steps}"
            )
        self.config = build_config(architecture, settings)
        if optimizer == "muon" and not hasattr(self.config, "n_layer"):
            raise UserError(NO_MATRICES.format(architecture))
        self.save_hyperparameters(logger=False, ignore=list(settings))
        self.hparams.update(plain_settings(self.config))
        # NaN losses stay NaN: by default the metric would leave their batches out. A dictionary is
        # no submodule, so that the sums stay in float32 in half precision
        self.losses = {name: MeanMetric(nan_strategy=math.nan) for name in ("val", "train")}
        # replaced by the command line; not part of a checkpoint
        self.training_loss: Loss = next_character_loss
        self.net: Model
        if vocabulary is not None:
            self.use_network(self.build(len(Tokenizer(vocabulary).vocabulary)), vocabulary)

    def use_network(self, net: Model, vocabulary: str) -> None:
        """Use a network with the settings of this model, with the fast kernels."""
        self.net, self.hparams["vocabulary"] = kernels.install(net), vocabulary

    def setup(self, stage: str) -> None:
        """Take the vocabulary of the data module, or check that it is that of the model.

        Raises:
            UserError: if they differ, there is neither, or windows are too long for the model.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        given, own = getattr(data, "vocabulary", None), self.hparams["vocabulary"]
        if own is None and given is None:
            raise UserError(
                "the model has no vocabulary: create it with "
                "LanguageModel(..., vocabulary=CHARACTERS), or train it with a CharDataModule"
            )
        if own is not None and given not in (None, own):
            raise UserError(
                f"the model knows the characters {own!r}, but the text has {given!r}: use the text "
                "that it was trained on, or a new model"
            )
        self.hparams["vocabulary"] = own if given is None else given
        block_size, longest = getattr(data, "block_size", 0), self.hparams["block_size"]
        if block_size > longest:
            raise UserError(
                f"the data module makes windows of {block_size} characters, but the model reads "
                f"at most {longest}: give both the same block_size"
            )

    def configure_model(self) -> None:
        """Build the network, unless it was built with the model or for an earlier stage."""
        if not hasattr(self, "net"):
            self.net = kernels.install(self.build(len(self.hparams["vocabulary"])))

    def on_fit_start(self) -> None:
        """Log the hyperparameters of model and data to each logger."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        hparams = {**(data.hparams if data else {}), **self.hparams}
        if data and (corpus := data.state_dict()):
            hparams |= {f"corpus_{name}": value for name, value in corpus.items()}
        hparams |= {"precision": self.trainer.precision, "parameters": count_parameters(self.net)}
        for name, value in hparams.items():
            if not isinstance(value, int | float):  # the path of a text may be no valid Unicode
                hparams[name] = str(value).encode(errors="backslashreplace").decode()
        for logger in self.trainer.loggers:
            logger.log_hyperparams(hparams)

    def build(self, vocab_size: int) -> Model:
        """Build a new network with these settings, without the fast kernels.

        Raises:
            UserError: if it is too large for this machine.
        """
        settings = plain_settings(self.config)
        return build_model(self.hparams["architecture"], vocab_size, **settings)

    def text_model(self) -> TextModel:
        """Return the network and its tokenizer, for ``nanogpt.generate`` and ``attention_maps``.

        Raises:
            UserError: if there is no network yet.
        """
        if not hasattr(self, "net"):
            raise UserError(
                "the model has no network yet: train it, or create it with its vocabulary, "
                "LanguageModel(..., vocabulary=CHARACTERS)"
            )
        return TextModel(self.net, Tokenizer(self.hparams["vocabulary"]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint matches this model, before its weights are loaded."""
        check_compatible(checkpoint["hyper_parameters"], self.hparams)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V)."""
        return self.net(ids)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss, in nats per character, over a batch of (B, T) ids and targets."""
        loss = self.training_loss(self.net, *batch)
        trainer, step = self.trainer, self.global_step + 1
        logged = loss.detach()
        if trainer.world_size > 1 and is_logged(trainer, step):
            logged = trainer.strategy.reduce(logged.clone(), reduce_op="mean")
        # a metric of a bar is read in every step, which waits for a GPU
        bar = trainer.progress_bar_callback
        self.log("loss/batch", logged, prog_bar=getattr(bar, "shows_metrics", bar is not None))
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        # on the CPU: a number would be copied to a GPU in every step
        self.log("learning_rate", torch.tensor(rate, dtype=torch.float32))
        # loggers use it as the number of completed steps; by default that is one less
        self.log("step", torch.tensor(step, dtype=torch.float32))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let Lightning evaluate after the last step, whatever the interval of evaluations."""
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        """Reset the losses: those of an aborted evaluation, or of one in inference mode."""
        for metric in self.losses.values():
            metric.to(self.device).reset()

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Accumulate the loss of a batch: loader 0 is the val split, loader 1 the train split."""
        ids, targets = batch
        if targets.numel():  # with several devices, a part of a batch may be empty
            metric = self.losses[("val", "train")[dataloader_idx]]
            metric.update(next_character_loss(self.net, ids, targets), targets.numel())

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per character of the val and train splits."""
        metrics: dict[str, float] = {}
        loaders = self.trainer.num_val_batches or self.trainer.num_sanity_val_batches
        for name, metric in list(self.losses.items())[: len(loaders)]:
            figures = loss_figures(metric.compute().item())
            metrics |= {f"{figure}/{name}": value for figure, value in figures.items()}
        self.log_dict(metrics, sync_dist=True)
        if self.trainer.state.fn == "fit":
            self.log("step", float(self.global_step), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and a scheduler if the learning rate is not constant.

        Raises:
            UserError: if the last step, at which the schedule ends, is not known.
        """
        optimizer = build_optimizer(self.net, self.hparams, fused=is_fused(self.trainer))
        if not is_scheduled(self.hparams):
            return optimizer
        last: float = self.trainer.max_steps
        if last < 0:  # as with the loaders of a user, which have epochs
            last = self.trainer.estimated_stepping_batches
        scheduler = build_scheduler(optimizer, self.hparams, last)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def is_logged(trainer: L.Trainer, step: int) -> bool:
    """Return whether the metrics of an optimizer step are logged."""
    return step % trainer.log_every_n_steps == 0 or step == trainer.max_steps  # type: ignore[attr-defined]
