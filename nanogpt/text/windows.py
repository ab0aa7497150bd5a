"""Which characters a batch holds: pure functions of the seed and the optimizer step.

A window starts at an offset and holds ``block_size`` characters and, as targets, the same ones
shifted by one. The *global* batch of an optimizer step depends on nothing but (seed, step), so a
resumed run, a run on several devices and a run that accumulates micro-batches all see
the same windows: each takes its slice.
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


def batch_offsets(seed: int, step: int, batch_size: int, high: int) -> Tensor:
    """Return the window offsets of the global batch of one optimizer step.

    Args:
        seed: the run's seed.
        step: the optimizer step, from 0.
        batch_size: windows in the global batch, B.
        high: offsets are uniform in [0, high).

    Returns: int64 offsets, shape (B,).
    """
    return _offsets(seed, step // STEPS_AT_A_TIME, batch_size, high)[step % STEPS_AT_A_TIME]


def training_batches(
    seed: int,
    first_step: int,
    batch_size: int,
    high: int,
    accumulate: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Tensor]:
    """Yield, for ever, the offsets of one rank's micro-batches, from an optimizer step on.

    Each has shape (batch_size / (accumulate * world_size),); all of a step's make up its global
    batch, in order of micro-batch, then rank.
    """
    size = batch_size // (accumulate * world_size)
    step = first_step
    while True:
        offsets = batch_offsets(seed, step, batch_size, high)
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
