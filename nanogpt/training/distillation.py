"""Distillation: train on the mean prediction of trained models instead of the text's characters.

Models of the same recipe with different seeds make different errors, so the mean of their
probabilities is better than each of them. It also carries more information about each next
character than the one character in the text.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.models.ensemble import mean_probabilities
from nanogpt.notices import notice
from nanogpt.runs import find_model
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.losses import Loss, next_character_loss


def build_loss(teachers: Sequence[str], data: CharDataModule, device: torch.device) -> Loss:
    """Return the training loss: that of the text or, with paths of teachers, of distillation."""
    if not teachers:
        return next_character_loss
    return distillation_loss([load_teacher(Path(path), data).to(device) for path in teachers])


def distillation_loss(teachers: Sequence[nn.Module]) -> Loss:
    """Return the loss that distills teachers into a model.

    It is the cross-entropy with the mean of their probabilities, in nats per character. Source:
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), at a
    temperature of 1.

    Args:
        teachers: networks from ids (B, T) to logits (B, T, V), in evaluation mode.
    """

    def loss(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            mean = mean_probabilities(teachers, ids)  # (B, T, V)
        return F.cross_entropy(net(ids).flatten(0, 1).float(), mean.flatten(0, 1))

    return loss


def find_teacher(given: str) -> str:
    """Return the path of a teacher's model file.

    Raises:
        UserError: if there is none, or for ``best`` and ``last``, whose run changes.
    """
    if given not in ("best", "last"):
        with suppress(UserError):
            return str(find_model(given))
    raise UserError(f"no teacher at {given!r}: --teachers takes .safetensors files and run folders")


def load_teacher(path: Path, data: CharDataModule) -> nn.Module:
    """Load a teacher; raise a ``UserError`` if it does not fit the data."""
    teacher = read_checkpoint(path)
    block_size = teacher.settings["block_size"]
    if teacher.tokenizer.vocabulary != data.tokenizer.vocabulary:
        raise UserError(
            f"{path} cannot be a teacher: its vocabulary is not that of the corpus; use a model "
            "trained on the same characters"
        )
    if block_size < data.block_size:
        raise UserError(
            f"{path} cannot be a teacher: its block_size is {block_size}; set --model.block_size, "
            f"which is {data.block_size}, to at most that"
        )
    trained_on = teacher.corpus.get("sha256"), teacher.data.get("val_fraction")
    if trained_on != (data.corpus.sha256, data.val_fraction):
        notice(f"{path} was trained on another text or split, and may have seen this val split")
    return kernels.install(teacher.model)
