"""Distillation: a model learns what trained ones expect, in place of what the text goes on with.

Models of one recipe and other seeds err in other ways, so that the mean of their probabilities is
better than any of them; and it says more of each next character than the one that is written there.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.notices import notice
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import Loss, next_character_loss


def choose_loss(teachers: Sequence[str], data: CharDataModule, device: torch.device) -> Loss:
    """Return what a run minimises: the loss of the text, or of what its teachers expect.

    Args:
        teachers: paths of their checkpoints, if there are any.
        data: which is set up.
        device: where to train.

    Raises:
        UserError: if one of them cannot teach.
    """
    if not teachers:
        return next_character_loss
    return distilled_loss([read_teacher(Path(path), data).to(device) for path in teachers])


def distilled_loss(teachers: Sequence[nn.Module]) -> Loss:
    """Return the loss of a model that learns from others.

    It is the cross-entropy, in nats per character, to the mean of their probabilities. Source:
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015), at a
    temperature of 1.

    Args:
        teachers: networks from ids (B, T) to logits (B, T, V), in evaluation mode.
    """

    def loss(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            each = [teacher(ids).float().softmax(-1) for teacher in teachers]
            expected = torch.stack(each).mean(0)  # (B, T, V)
        return F.cross_entropy(net(ids).flatten(0, 1).float(), expected.flatten(0, 1))

    return loss


def read_teacher(path: Path, data: CharDataModule) -> nn.Module:
    """Read a trained model, and check that it can teach one that learns from this data.

    Raises:
        UserError: if it cannot.
    """
    teacher = read_checkpoint(path)
    block_size = teacher.settings["block_size"]
    if teacher.tokenizer.vocabulary != data.tokenizer.vocabulary:
        raise UserError(f"{path} cannot teach: it knows other characters than this text has")
    if block_size < data.block_size:
        raise UserError(
            f"{path} cannot teach: it reads {block_size} characters, and --model.block_size is "
            f"{data.block_size}"
        )
    settings = teacher.content.get("datamodule_hyper_parameters") or {}
    learnt = teacher.corpus.get("sha256"), settings.get("val_fraction")
    if learnt != (data.corpus.sha256, data.val_fraction):
        notice(f"{path} learnt from another text or split, and may know this val split")
    return kernels.install(teacher.model)
