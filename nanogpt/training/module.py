"""The LightningModule: what a training step and an evaluation do with a language model."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import lightning as L
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from nanogpt.errors import UserError
from nanogpt.models import SETTINGS, Net, build_model
from nanogpt.training.health import Watch
from nanogpt.training.optimizer import (
    OptimizerName,
    Schedule,
    build_optimizer,
    is_scheduled,
    learning_rate_factor,
)

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # of a network, ids (B, T), targets (B, T)


class LanguageModel(L.LightningModule):
    """A character-level language model, trained by the mean loss of the next character.

    All arguments are plain values, so that a checkpoint alone can rebuild the model.

    Args:
        architecture: ``bigram``, ``gpt``, ``rung`` (a GPT that lacks some of its parts),
            ``modern`` (one with what has been found out since), or ``shifted`` (a modern one whose
            layers read some channels one or two positions late).
        block_size: longest context, in characters; also the length of the training windows.
        n_layer: number of blocks.
        n_head: attention heads in a block.
        n_embd: width of the residual stream.
        head_size: width of a head; by default n_embd // n_head.
        dropout: probability that an activation is zeroed in training.
        noise: probability that a character is read as a random one in training; of ``modern`` and
            ``shifted``.
        init: ``default`` (PyTorch's own, as the reference) or ``normal``, N(0, 0.02) as GPT-2.
        parts: what a rung's blocks are made of: mean or attention, feed_forward, residual, norm.
        positions: a rung's position embeddings, ``learned`` or ``sinusoidal``.
        optimizer: ``adamw``, or ``muon`` for the matrices of the blocks and AdamW for the rest.
        muon_learning_rate: Muon's peak learning rate.
        learning_rate: AdamW's peak learning rate.
        betas: AdamW's decay rates of the two moments.
        weight_decay: share of a weight that a step takes away, times the weight's own learning
            rate; of all parameters.
        schedule: ``constant``; ``cosine`` down to a tenth at the last step; or ``linear`` down to
            nothing over the last 60% of the steps.
        warmup_steps: steps over which the learning rate rises linearly.
        vocabulary: the distinct characters, in order; taken from the data where it is null.
    """

    def __init__(
        self,
        architecture: Literal["bigram", "gpt", "rung", "modern", "shifted"] = "gpt",
        block_size: int = 256,
        n_layer: int | None = None,
        n_head: int | None = None,
        n_embd: int | None = None,
        head_size: int | None = None,
        dropout: float | None = None,
        noise: float | None = None,
        init: Literal["default", "normal"] | None = None,
        parts: list[str] | None = None,
        positions: Literal["learned", "sinusoidal"] | None = None,
        optimizer: OptimizerName = "adamw",
        muon_learning_rate: float = 0.02,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        rates = {"learning_rate": learning_rate, "muon_learning_rate": muon_learning_rate}
        for name, rate in rates.items():
            if not 0 < rate < math.inf:
                raise UserError(f"{name} must be above 0, and finite, not {rate}")
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"betas must lie in [0, 1), not {betas}")
        if not 0 <= weight_decay < math.inf or warmup_steps < 0:
            raise UserError("weight_decay and warmup_steps must be at least 0, and finite")
        self.save_hyperparameters(logger=False)
        # a loss that is not a number stays one: the default would leave its batch out
        self.val_loss, self.train_loss = (MeanMetric(nan_strategy=math.nan) for _ in range(2))
        self.evaluation: dict[str, float] = {}
        self.watch = Watch()
        # another may take its place; it is no part of the module, and of no checkpoint
        self.training_loss: Loss = next_character_loss

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning notes the name of each hook that it runs, forty times a step; a module's own
        # way of setting attributes looks for parameters first, which is a tenth of a small step
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Build the network, with the vocabulary of the data where none was given."""
        if hasattr(self, "net"):
            return
        if self.hparams["vocabulary"] is None:
            self.hparams["vocabulary"] = self.trainer.datamodule.tokenizer.vocabulary  # type: ignore[attr-defined]
        self.net = self.build(len(self.hparams["vocabulary"]))

    def build(self, vocab_size: int) -> Net:
        """Return a new network of these settings.

        Raises:
            UserError: if the settings make none.
        """
        settings = {name: self.hparams[name] for name in SETTINGS}
        return build_model(self.hparams["architecture"], vocab_size, **settings)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that a checkpoint is of this model, before its weights are taken.

        Raises:
            UserError: if it is of another model, or of another vocabulary.
        """
        saved = checkpoint["hyper_parameters"]
        free = ("dropout", "noise", "init")  # weights fit whatever these are
        for name in ("architecture", *(s for s in SETTINGS if s not in free), "vocabulary"):
            theirs, ours = saved.get(name), self.hparams[name]
            if theirs != ours:
                raise UserError(
                    f"the checkpoint has {name} {theirs!r}, not {ours!r}: use the settings and "
                    "the text of its own run"
                )
        if saved.get("optimizer", "adamw") != self.hparams["optimizer"]:
            raise UserError("the checkpoint has the state of another --model.optimizer")

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V)."""
        return self.net(ids)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss, in nats per character, over a batch of (B, T) ids and targets.

        Raises:
            UserError: on a CPU, if it is not finite; a GPU's is looked at later.
        """
        loss = self.training_loss(self.net, *batch)
        self.watch.see(self, loss)
        return loss

    def validation_step(
        self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add a batch of windows to the loss of its split: loader 0 is val, 1 is train."""
        ids, targets = batch
        metric = (self.val_loss, self.train_loss)[dataloader_idx]
        metric.update(next_character_loss(self.net, ids, targets), targets.numel())

    def on_validation_epoch_end(self) -> None:
        """Publish the evaluation: loss, perplexity and bits per character of both splits."""
        metrics: dict[str, float] = {}
        for name, metric in (("val", self.val_loss), ("train", self.train_loss)):
            loss = metric.compute().item()
            metric.reset()
            metrics[f"loss/{name}"] = loss
            metrics[f"perplexity/{name}"] = math.exp(min(loss, 700.0))
            metrics[f"bits_per_character/{name}"] = loss / math.log(2)
        self.evaluation = metrics
        self.log_dict(
            metrics, logger=False, sync_dist=True
        )  # for checkpoints and early stopping to monitor

    def configure_optimizers(self) -> Any:
        """The optimizer, fused where the precision allows; a scheduler only if there is one."""
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
    """Return the mean loss of a network, in nats: ids (B, T), targets (B, T)."""
    return mean_loss(net(ids), targets)


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats: logits (B, T, V), targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
