"""The LightningModule: training step, evaluation and optimizer of a language model."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.models.registry import (
    Model,
    build_config,
    build_model,
    plain_settings,
    structural_settings,
)
from nanogpt.training.non_finite_guard import NonFiniteGuard
from nanogpt.training.optimizer import OptimizerName, build_optimizer
from nanogpt.training.schedule import Schedule, is_scheduled, learning_rate_factor

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, ids (B, T), targets (B, T))


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
        vocabulary: the distinct characters, in order; null takes them from the data.
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
        self.save_hyperparameters(logger=False, ignore=list(settings))
        self.hparams.update(plain_settings(self.config))
        # NaN losses stay NaN: by default the metric would leave their batches out
        self.val_loss, self.train_loss = (MeanMetric(nan_strategy=math.nan) for _ in range(2))
        self.evaluation: dict[str, float] = {}
        self.guard = NonFiniteGuard()
        # replaced by the command line; not part of a checkpoint
        self.training_loss: Loss = next_character_loss

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning sets this some forty times a step; nn.Module.__setattr__ would look for
        # parameters each time, which takes a tenth of a small model's step
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Build the network; without a vocabulary, take the data module's."""
        if hasattr(self, "net"):
            return
        if self.hparams["vocabulary"] is None:
            self.hparams["vocabulary"] = self.trainer.datamodule.tokenizer.vocabulary  # type: ignore[attr-defined]
        self.net = kernels.install(self.build(len(self.hparams["vocabulary"])))

    def build(self, vocab_size: int) -> Model:
        """Build a new network with these settings, without the fast kernels.

        Raises:
            UserError: if it is too large for this machine.
        """
        settings = plain_settings(self.config)
        return build_model(self.hparams["architecture"], vocab_size, **settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint matches this model, before its weights are loaded."""
        self.check_compatible(checkpoint["hyper_parameters"])

    def check_compatible(self, saved: Mapping[str, Any]) -> None:
        """Check that the hyperparameters of a checkpoint match this model.

        Raises:
            UserError: if architecture, structure, vocabulary or optimizer differ.
        """
        structure = structural_settings(self.hparams["architecture"])
        for name in ("architecture", *structure, "vocabulary"):
            theirs, ours = saved.get(name), self.hparams[name]
            if theirs != ours:
                raise UserError(
                    f"the checkpoint has {name} {theirs!r}, not {ours!r}: use the settings and "
                    "the text of its own run"
                )
        optimizer = saved.get("optimizer", "adamw")
        if optimizer != self.hparams["optimizer"]:
            raise UserError(
                f"the checkpoint has the state of {optimizer}, not of "
                f"{self.hparams['optimizer']}: use --model.optimizer {optimizer}"
            )

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V)."""
        return self.net(ids)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss, in nats per character, over a batch of (B, T) ids and targets.

        Raises:
            UserError: on a CPU, if it is not finite; on a GPU this is checked later.
        """
        loss = self.training_loss(self.net, *batch)
        self.guard.add(self, loss)
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Accumulate the loss of a batch: loader 0 is the val split, loader 1 the train split."""
        ids, targets = batch
        metric = (self.val_loss, self.train_loss)[dataloader_idx]
        metric.update(next_character_loss(self.net, ids, targets), targets.numel())

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and bits per character of both splits."""
        metrics: dict[str, float] = {}
        for name, metric in (("val", self.val_loss), ("train", self.train_loss)):
            loss = metric.compute().item()
            metric.reset()
            metrics[f"loss/{name}"] = loss
            metrics[f"perplexity/{name}"] = math.exp(min(loss, 700.0))
            metrics[f"bits_per_character/{name}"] = loss / math.log(2)
        self.evaluation = metrics
        # for callbacks that monitor a metric; the RunRecorder passes them to the logger
        self.log_dict(metrics, logger=False, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and a scheduler if the learning rate is not constant."""
        h = self.hparams
        # Lightning refuses to clip gradients under 16-mixed with a fused optimizer
        optimizer = build_optimizer(self.net, h, fused=self.trainer.precision != "16-mixed")
        if not is_scheduled(h):
            return optimizer
        factor = partial(
            learning_rate_factor,
            max_steps=self.trainer.max_steps,
            schedule=h["schedule"],
            warmup_steps=h["warmup_steps"],
        )
        return [optimizer], [{"scheduler": LambdaLR(optimizer, factor), "interval": "step"}]


def next_character_loss(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a network on ids (B, T) and targets (B, T), in nats per character."""
    return cross_entropy_loss(net(ids), targets)


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (B, T, V) and targets (B, T), in nats."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
