"""Batches depend on seed and step only, and evaluation windows contain each target once."""

from itertools import islice

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.text.batches import (
    EVALUATION_CHARACTERS,
    STEPS_PER_DRAW,
    Draw,
    Windows,
    batch_offsets,
    evaluation_windows,
    gather,
    training_batches,
)

hypothesis_settings = settings(derandomize=True, deadline=None)
TEXT = torch.arange(1000) % 251


# training: offsets are a pure function of (seed, step)


def test_offsets_depend_on_seed_and_step_only() -> None:
    # enough seeds and chunks of steps to evict each other from the cache
    keys = [(seed, step) for step in (0, 255, 256, 700, 5000) for seed in (1, 2, 1337)]
    first = {key: batch_offsets(Draw(key[0], 8, 10_000), key[1]).clone() for key in keys}
    for key in reversed(keys):
        assert batch_offsets(Draw(key[0], 8, 10_000), key[1]).equal(first[key]), key
    assert len({tuple(offsets.tolist()) for offsets in first.values()}) == len(keys)


def test_steps_have_distinct_offsets() -> None:
    steps = range(3 * STEPS_PER_DRAW)
    draws = {tuple(batch_offsets(Draw(7, 4, 2**20), step).tolist()) for step in steps}
    assert len(draws) == len(steps)


@pytest.mark.parametrize("seed", [0, -1, 2**32, 2**64 - 1])
def test_any_integer_is_a_distinct_seed(seed: int) -> None:
    offsets = batch_offsets(Draw(seed, 8, 10_000), 0)
    assert offsets.shape == (8,)
    assert offsets.dtype == torch.int64
    assert not offsets.equal(batch_offsets(Draw(1337, 8, 10_000), 0))


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = batch_offsets(Draw(11, 8, 10_000), 0).clone()
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(1)
    batch_offsets(Draw(12, 8, 10_000), 0)
    batch_offsets(Draw(13, 8, 10_000), 0)  # evicts the first from the cache
    assert batch_offsets(Draw(11, 8, 10_000), 0).equal(first)


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (  # tiny Shakespeare's train split, as gpt10m.yaml reads it
            Draw(1337, 64, 1_003_854 - 256),
            {0: [946414, 476887, 605240], 1: [243252, 601476, 410012], 256: [72891, 74901, 302229]},
        ),
        (  # as quickstart.yaml reads it; step 490 extends into the second epoch
            Draw(1337, 32, 1_003_854 - 64, 64),
            {0: [485840, 85200, 811472], 1: [47568, 627472, 767568], 490: [741643, 348747, 789835]},
        ),
    ],
)
def test_offsets_of_shipped_runs(draw: Draw, expected: dict[int, list[int]]) -> None:
    some = slice(3) if draw.stride is None else slice(-3, None)
    found = {step: batch_offsets(draw, step)[some].tolist() for step in expected}
    assert found == expected, (
        "the same seed now gives other training batches: logged runs cannot be reproduced, and a "
        "resumed run uses other data. If this is intended, say so in the commit and expect "
        f"{found}"
    )


def chi_square(draws: Tensor, num_offsets: int) -> float:
    """Deviation from uniformity, in standard deviations; about 0 for independent draws."""
    counts = torch.bincount(draws, minlength=num_offsets).double()
    assert len(counts) == num_offsets, "out of range"
    expected = len(draws) / num_offsets
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - (num_offsets - 1)) / (2 * (num_offsets - 1)) ** 0.5


def test_offsets_are_uniform() -> None:
    num_offsets = 101
    within = torch.cat(
        [batch_offsets(Draw(3, 64, num_offsets), step) for step in range(STEPS_PER_DRAW)]
    )
    assert abs(chi_square(within, num_offsets)) < 4
    first = torch.stack(  # each from a new generator
        [batch_offsets(Draw(seed, 1, num_offsets), chunk * STEPS_PER_DRAW)[0]
         for seed in range(40) for chunk in range(100)]
    )  # fmt: skip
    assert abs(chi_square(first, num_offsets)) < 4


@pytest.mark.parametrize("num_offsets", [1, 2, 3])
def test_offsets_of_a_tiny_split_cover_it_exactly(num_offsets: int) -> None:
    offsets = torch.cat([batch_offsets(Draw(5, 16, num_offsets), step) for step in range(20)])
    assert set(offsets.tolist()) == set(range(num_offsets))


# training: without replacement


@pytest.mark.parametrize("num_offsets", [1000, 1009, 1016])  # a whole number of windows, and others
@pytest.mark.parametrize("batch_size", [1, 7, 125, 300])  # of 100 to 126 windows an epoch
@pytest.mark.parametrize("stride", [8, 10])
def test_epoch_uses_each_window_once(num_offsets: int, batch_size: int, stride: int) -> None:
    draw, per_epoch = Draw(3, batch_size, num_offsets, stride), num_offsets // stride
    steps = 4 * per_epoch // batch_size + 1
    offsets = torch.cat([batch_offsets(draw, step) for step in range(steps)])
    assert offsets.dtype == torch.int64
    firsts, orders = set(), set()
    for epoch in offsets[: 4 * per_epoch].view(4, per_epoch):
        first, last = epoch.min(), epoch.max()
        assert epoch.sort()[0].equal(first + stride * torch.arange(per_epoch))
        assert 0 <= first < stride
        assert last < num_offsets
        firsts.add(int(first))
        orders.add(tuple(((epoch - first) // stride).tolist()))
    assert len(firsts) > 1  # the text is divided at new offsets
    assert len(orders) == 4


def test_offsets_without_replacement_depend_on_seed_and_step_only() -> None:
    keys = [(seed, step) for step in (0, 3, 4, 90, 5000) for seed in (1, 2, 1337)]
    first = {key: batch_offsets(Draw(key[0], 8, 1000, 30), key[1]).clone() for key in keys}
    for key in reversed(keys):
        assert batch_offsets(Draw(key[0], 8, 1000, 30), key[1]).equal(first[key]), key
    assert len({tuple(offsets.tolist()) for offsets in first.values()}) == len(keys)


@pytest.mark.parametrize("num_offsets", [1, 2, 3, 9])
def test_offsets_without_replacement_cover_a_short_split(num_offsets: int) -> None:
    offsets = torch.cat([batch_offsets(Draw(5, 16, num_offsets, 8), step) for step in range(20)])
    assert set(offsets.tolist()) == set(range(min(num_offsets, 8)))


def test_offsets_without_replacement_are_uniform() -> None:
    draw, per_epoch = Draw(7, 20, 100, 5), 20
    assert draw.batch_size == per_epoch  # one epoch per step
    firsts = torch.stack([batch_offsets(draw, step).min() for step in range(2000)])
    assert abs(chi_square(firsts, 5)) < 4
    offsets = torch.cat([batch_offsets(draw, step)[:1] for step in range(2000)])
    assert abs(chi_square(offsets, 100)) < 4


# training: ranks, micro-batches, resuming


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_micro_batches_partition_the_global_batch(
    accumulate: int, world_size: int
) -> None:
    n_steps, batch_size = 3, 24
    ranks = [
        training_batches(Draw(1337, batch_size, 1000), 254, accumulate, rank, world_size)
        for rank in range(world_size)
    ]
    for step in range(254, 254 + n_steps):  # across the boundary of two chunks
        parts = [next(rank) for _ in range(accumulate) for rank in ranks]
        assert {len(part) for part in parts} == {batch_size // (accumulate * world_size)}
        assert torch.cat(parts).equal(batch_offsets(Draw(1337, batch_size, 1000), step))


@pytest.mark.parametrize("stride", [None, 9])
@pytest.mark.parametrize("first_step", [0, 1, 255, 256, 300])
def test_resumed_batches_equal_the_uninterrupted_ones(first_step: int, stride: int | None) -> None:
    accumulate, draw = 2, Draw(1337, 8, 1000, stride)
    from_start = training_batches(draw, 0, accumulate)
    skipped = list(islice(from_start, first_step * accumulate, (first_step + 3) * accumulate))
    resumed = list(islice(training_batches(draw, first_step, accumulate), 3 * accumulate))
    assert torch.stack(resumed).equal(torch.stack(skipped))


# evaluation


def targets(batches: list[Windows]) -> Tensor:
    """Positions of all targets in the split, in order."""
    windows = [batch.offsets[:, None] + torch.arange(batch.length) + 1 for batch in batches]
    return torch.cat([positions.flatten() for positions in windows])


def test_consecutive_windows_of_a_small_split() -> None:
    batches = evaluation_windows(11, 4)
    assert [(batch.offsets.tolist(), batch.length) for batch in batches] == [([0, 4], 4), ([8], 3)]
    batches = evaluation_windows(3, 4)
    assert [(batch.offsets.tolist(), batch.length) for batch in batches] == [([0], 3)]


@hypothesis_settings
@given(st.integers(1, 40_000), st.integers(1, 300))
def test_consecutive_windows_contain_every_target_once(n_targets: int, block_size: int) -> None:
    batches = evaluation_windows(n_targets, block_size)
    assert targets(batches).equal(torch.arange(1, n_targets + 1))
    assert all(batch.length == block_size for batch in batches[:-1])


@hypothesis_settings
@given(st.integers(1, 40_000), st.integers(1, 300), st.integers(0, 100_000))
def test_spaced_windows_are_even_and_have_the_requested_number_of_targets(
    n_targets: int, block_size: int, last_offset: int
) -> None:
    assume(n_targets >= block_size)
    batches = evaluation_windows(n_targets, block_size, last_offset)
    positions = targets(batches)
    assert len(positions) == n_targets
    assert positions.max() <= last_offset + block_size  # the last character of the split
    offsets = torch.cat([batch.offsets for batch in batches])
    assert offsets[0] == 0
    if len(offsets) > 1:
        assert offsets[-1] == last_offset
        gaps = offsets.diff()
        assert gaps.min() >= 0
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("block_size", [1, 8, 256, 2**14, 2**15])
@pytest.mark.parametrize("last_offset", [None, 5000])
def test_evaluation_batches_fit_in_memory(block_size: int, last_offset: int | None) -> None:
    batches = evaluation_windows(2**16 + 5, block_size, last_offset)
    assert all(
        batch.length * len(batch.offsets) <= max(EVALUATION_CHARACTERS, block_size)
        for batch in batches
    )
    assert len(batches) == 2**16 // max(EVALUATION_CHARACTERS, block_size) + 1


@pytest.mark.parametrize("block_size", [1, 7, 111, 999, 2000])
def test_mean_loss_over_consecutive_windows_equals_the_mean_over_targets(block_size: int) -> None:
    loss = (torch.arange(251) ** 2 + 1).double()  # of each character, as a target
    batches = [gather(TEXT, batch) for batch in evaluation_windows(len(TEXT) - 1, block_size)]
    losses = torch.cat([loss[target].flatten() for _, target in batches])
    assert losses.mean() == loss[TEXT[1:]].mean()


# gather


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_gather_slices(dtype: torch.dtype) -> None:
    offsets = torch.tensor([3, 0, 991, 3])  # the last target of the third is the last character
    inputs, shifted = gather(TEXT.to(dtype), Windows(offsets, 8))
    assert inputs.dtype == shifted.dtype == torch.int64
    assert inputs.tolist() == [TEXT[offset : offset + 8].tolist() for offset in offsets]
    assert shifted.tolist() == [TEXT[offset + 1 : offset + 9].tolist() for offset in offsets]


def test_gather_rejects_a_window_without_its_last_target() -> None:
    with pytest.raises(IndexError):
        gather(TEXT, Windows(torch.tensor([992]), 8))


@pytest.mark.parametrize("n_characters", [9, 10, 60])
def test_smallest_splits(n_characters: int) -> None:
    block_size, ids = 8, TEXT[:n_characters].byte()
    num_offsets = n_characters - block_size
    for offsets in islice(training_batches(Draw(1337, 4, num_offsets), 0), 20):
        assert gather(ids, Windows(offsets, block_size))[0].shape == (4, block_size)
    for batch in evaluation_windows(n_characters - 1, block_size, num_offsets - 1):
        assert gather(ids, batch)[1].shape == (len(batch.offsets), batch.length)
