"""Which characters a batch holds: pure functions of the seed and the optimizer step.

A window starts at an offset and holds ``block_size`` characters and, as targets, the same ones
shifted by one. The *global* batch of an optimizer step depends on nothing but (seed, step), so a
resumed run, a run on several devices and a run that accumulates micro-batches all see
the same windows: each takes its slice.

Windows are drawn with replacement, each anywhere, or without: then the text is cut into windows
anew for each epoch, which takes each of them once.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

STEPS_AT_A_TIME = (
    256  # offsets are drawn for so many steps in one go: one draw is cheap, 256 as cheap
)
EVALUATION_CHARACTERS = 2**14  # in a batch of evaluation windows


class Draw(NamedTuple):
    """How the training windows of a run are drawn.

    Args:
        seed: the run's.
        batch_size: windows in the global batch of an optimizer step, B.
        high: offsets lie in [0, high).
        apart: None draws with replacement, uniformly; a number draws without, from windows that
            lie so many characters apart: the length of a window.
    """

    seed: int
    batch_size: int
    high: int
    apart: int | None = None


class Windows(NamedTuple):
    """Offsets into a split, shape (B,), and how many characters each window has."""

    offsets: Tensor
    length: int


def mix(seed: int, number: int) -> int:
    """Return a seed of 32 bits, all that torch's CPU generator takes, for one of many streams."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    return mixed >> 32


@lru_cache(maxsize=2)
def _offsets(seed: int, chunk: int, batch_size: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(mix(seed, chunk))
    return torch.randint(high, (STEPS_AT_A_TIME, batch_size), generator=generator)


@lru_cache(maxsize=2)
def _epoch(seed: int, number: int, high: int, apart: int) -> Tensor:
    """Return an epoch's offsets in a random order; the lowest is any from 0 to ``apart`` - 1.

    Every epoch has as many, so that their number tells in which a window is; of a text that is no
    whole number of windows, what is left over at its end is never read.
    """
    generator = torch.Generator().manual_seed(mix(seed, number))
    first = torch.randint(min(apart, high), (1,), generator=generator)
    return first + apart * torch.randperm(max(high // apart, 1), generator=generator)


def batch_offsets(draw: Draw, step: int) -> Tensor:
    """Return the window offsets of the global batch of one optimizer step, from 0: (B,) int64."""
    seed, batch_size, high, apart = draw
    if apart is None:
        return _offsets(seed, step // STEPS_AT_A_TIME, batch_size, high)[step % STEPS_AT_A_TIME]
    parts, first, end = [], step * batch_size, (step + 1) * batch_size
    while first < end:  # a batch may reach into the next epochs
        epoch, begin = divmod(first, max(high // apart, 1))
        parts.append(_epoch(seed, epoch, high, apart)[begin : begin + end - first])
        first += len(parts[-1])
    return torch.cat(parts)


def training_batches(
    draw: Draw, first_step: int, accumulate: int = 1, rank: int = 0, world_size: int = 1
) -> Iterator[Tensor]:
    """Yield, for ever, the offsets of one rank's micro-batches, from an optimizer step on.

    Each has shape (batch_size / (accumulate * world_size),); all of a step's make up its global
    batch, in order of micro-batch, then rank.
    """
    size = draw.batch_size // (accumulate * world_size)
    step = first_step
    while True:
        offsets = batch_offsets(draw, step)
        for micro_batch in range(accumulate):
            begin = (micro_batch * world_size + rank) * size
            yield offsets[begin : begin + size]
        step += 1


def evaluation_windows(n_targets: int, block_size: int, high: int | None = None) -> list[Windows]:
    """Lay out windows that hold exactly ``n_targets`` targets, in batches of equal length.

    Args:
        n_targets: how many characters are to be predicted; all but the last window are full.
        block_size: characters in a full window, T.
        high: without it the windows are consecutive, from 0; with it, as many windows are
            spread evenly over the offsets [0, high].
    """
    full, rest = divmod(n_targets, block_size)
    starts = torch.arange(full + (rest > 0)) * block_size
    if high is not None:
        starts = torch.arange(len(starts)) * high // max(len(starts) - 1, 1)
    per_batch = max(EVALUATION_CHARACTERS // block_size, 1)
    batches = [Windows(offsets, block_size) for offsets in starts[:full].split(per_batch)]
    batches = [batch for batch in batches if len(batch.offsets)]
    return batches + ([Windows(starts[full:], rest)] if rest else [])


def gather(ids: Tensor, windows: Windows) -> tuple[Tensor, Tensor]:
    """Cut windows out of a split, on the device that holds it.

    Returns: inputs and targets, each (B, T) int64, the targets one character further on.
    """
    cut = ids.unfold(0, windows.length + 1, 1)[windows.offsets].long()  # (B, T + 1)
    return cut[:, :-1], cut[:, 1:]
