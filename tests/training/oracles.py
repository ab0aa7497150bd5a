"""Readers for the files of a run, and a plain training loop without Lightning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from nanogpt.text.batches import Draw, batch_offsets


def run_folder(version: int = 0) -> Path:
    return Path("lightning_logs") / f"version_{version}"


def saved_weights(version: int = 0, name: str = "last") -> dict[str, Tensor]:
    """Return the network's weights in a checkpoint of a run."""
    path = run_folder(version) / "checkpoints" / f"{name}.ckpt"
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("net."): weight for name, weight in state.items()}


def events(folder: Path) -> EventAccumulator:
    """Return all events in a folder, as TensorBoard reads them."""
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Return the scalars in a folder's events: tag, step, value."""
    found = events(folder)
    return {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }


def printed_losses(out: str) -> dict[int, tuple[str, str]]:
    """Return the printed evaluations: step, train loss, val loss."""
    lines = [line.replace(",", "").split() for line in out.splitlines() if line[:5] == "step "]
    return {int(words[1].rstrip(":")): (words[4], words[7]) for words in lines}


def plain_run(
    model: nn.Module,
    text: str,
    rates: Sequence[float],
    batch_size: int = 4,
    block_size: int = 8,
    seed: int = 1337,
    first_step: int = 0,
    **adamw: Any,
) -> list[float]:
    """Train one step with each learning rate and return the losses."""
    vocabulary = sorted(set(text))
    ids = torch.tensor([vocabulary.index(character) for character in text[: len(text) * 9 // 10]])
    optimizer = torch.optim.AdamW(model.parameters(), **adamw)
    losses = []
    for step, rate in enumerate(rates, first_step):
        starts = batch_offsets(Draw(seed, batch_size, len(ids) - block_size), step)
        windows = torch.stack([ids[start : start + block_size + 1] for start in starts])
        loss = F.cross_entropy(model(windows[:, :-1]).transpose(1, 2), windows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        losses.append(loss.item())
    return losses


def distance(model: nn.Module, weights: dict[str, Tensor]) -> float:
    """Return the largest difference between a model's weights and others of the same names."""
    own = model.state_dict()
    assert own.keys() == weights.keys()
    return max((own[name] - weights[name]).abs().max().item() for name in own)
