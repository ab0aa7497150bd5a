"""Batches as pure functions of the seed and the optimizer step.

A window is ``block_size`` characters from an offset and, as targets, the same ones shifted by one.
The *global* batch of an optimizer step depends only on (seed, step). A resumed run, a run on
several devices and a run that accumulates micro-batches use the same windows; each process
takes its slice.

Windows are drawn with replacement, at any offset, or without: then each epoch divides the text into
windows, at a new first offset, and uses each of them once.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

STEPS_PER_DRAW = 256  # drawing the offsets of 256 steps takes as long as drawing those of one
EVALUATION_CHARACTERS = 2**14  # in a batch of evaluation windows


class Draw(NamedTuple):
    """How the training windows of a run are drawn.

    Args:
        seed: random seed of the run.
        batch_size: windows in the global batch of an optimizer step, B.
        num_offsets: number of possible offsets, which are in [0, num_offsets).
        stride: None to draw offsets uniformly, with replacement; otherwise the distance between
            windows drawn without replacement, which is their length.
    """

    seed: int
    batch_size: int
    num_offsets: int
    stride: int | None = None


class Windows(NamedTuple):
    """Offsets into a split, (B,), and the number of characters in each window."""

    offsets: Tensor
    length: int


def hash_seed(seed: int, stream: int) -> int:
    """Hash a seed and the number of a stream to 32 bits, all that torch's CPU generator uses."""
    mixed = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    return mixed >> 32


@lru_cache(maxsize=2)
def _offsets(seed: int, chunk: int, batch_size: int, num_offsets: int) -> Tensor:
    generator = torch.Generator().manual_seed(hash_seed(seed, chunk))
    return torch.randint(num_offsets, (STEPS_PER_DRAW, batch_size), generator=generator)


@lru_cache(maxsize=2)
def _epoch_offsets(seed: int, epoch: int, num_offsets: int, stride: int) -> Tensor:
    """Return an epoch's offsets in random order; the lowest is random in [0, stride).

    All epochs have the same number of windows, so a window's number gives its epoch. The remainder
    at the end of the text is not used.
    """
    generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
    first = torch.randint(min(stride, num_offsets), (1,), generator=generator)
    return first + stride * torch.randperm(max(num_offsets // stride, 1), generator=generator)


def batch_offsets(draw: Draw, step: int) -> Tensor:
    """Return the offsets of the global batch of an optimizer step, counted from 0: (B,) int64."""
    seed, batch_size, num_offsets, stride = draw
    if stride is None:
        return _offsets(seed, step // STEPS_PER_DRAW, batch_size, num_offsets)[
            step % STEPS_PER_DRAW
        ]
    parts, first, end = [], step * batch_size, (step + 1) * batch_size
    while first < end:  # a batch may extend into the next epochs
        epoch, start = divmod(first, max(num_offsets // stride, 1))
        parts.append(_epoch_offsets(seed, epoch, num_offsets, stride)[start : start + end - first])
        first += len(parts[-1])
    return torch.cat(parts)


def training_batches(
    draw: Draw, first_step: int, accumulate: int = 1, rank: int = 0, world_size: int = 1
) -> Iterator[Tensor]:
    """Yield the offsets of one rank's micro-batches indefinitely, starting at an optimizer step.

    Each has shape (batch_size / (accumulate * world_size),). Concatenated by micro-batch, then by
    rank, those of a step are its global batch.
    """
    size = draw.batch_size // (accumulate * world_size)
    step = first_step
    while True:
        offsets = batch_offsets(draw, step)
        for micro_batch in range(accumulate):
            start = (micro_batch * world_size + rank) * size
            yield offsets[start : start + size]
        step += 1


def evaluation_windows(
    n_targets: int, block_size: int, last_offset: int | None = None
) -> list[Windows]:
    """Return batches of windows with ``n_targets`` targets in total.

    Args:
        n_targets: number of characters to predict; all windows but the last are full.
        block_size: characters in a full window, T.
        last_offset: None for consecutive windows from offset 0; otherwise they are evenly
            spaced over the offsets [0, last_offset].
    """
    n_full, remainder = divmod(n_targets, block_size)
    offsets = torch.arange(n_full + (remainder > 0)) * block_size
    if last_offset is not None:
        offsets = torch.arange(len(offsets)) * last_offset // max(len(offsets) - 1, 1)
    per_batch = max(EVALUATION_CHARACTERS // block_size, 1)
    batches = [Windows(part, block_size) for part in offsets[:n_full].split(per_batch) if len(part)]
    return batches + ([Windows(offsets[n_full:], remainder)] if remainder else [])


def gather(ids: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Gather windows from a split, (N,), on its device.

    Returns:
        Inputs and targets, (B, T) int64 each; the targets are one character later.
    """
    windowed = ids.unfold(0, windows.length + 1, 1)[windows.offsets].long()  # (B, T + 1)
    return windowed[:, :-1], windowed[:, 1:]
