"""The training loss of next characters."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, ids (B, T), targets (B, T))


def next_character_loss(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a network on ids (B, T) and targets (B, T), in nats per character."""
    return cross_entropy_loss(net(ids), targets)


def cross_entropy_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits (B, T, V) and targets (B, T), in nats.

    It is computed in at least float32.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loss_figures(loss: float) -> dict[str, float]:
    """Return a loss in nats per character, its perplexity and its bits per character, by name."""
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 88.0)),  # finite in float32
        "bits_per_character": loss / math.log(2),
    }
