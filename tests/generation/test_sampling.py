"""Distributions computed by hand, and draws that follow them."""

import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice

import pytest
import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.sampling import (
    STEPS_PER_DRAW,
    SamplingRule,
    next_probabilities,
    sample_ids,
    uniform_streams,
)

# Their exponentials are 1, 2, 4, 8 and 1, so that probabilities are fractions of 16.
LOGITS = [0.0, math.log(2), math.log(4), math.log(8), 0.0]
LAST = 1 - 2**-24  # the largest number that torch.rand returns


def probabilities(logits: Sequence[float], rule: SamplingRule) -> list[float]:
    (row,) = next_probabilities(torch.tensor([logits]), rule).tolist()
    return row


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (SamplingRule(), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(temperature=0.5), "1/86 4/86 16/86 64/86 1/86"),  # squares
        (SamplingRule(top_k=1), "0 0 0 1 0"),
        (SamplingRule(top_k=2), "0 0 4/12 8/12 0"),
        (SamplingRule(top_k=3), "0 2/14 4/14 8/14 0"),
        (SamplingRule(top_k=4), "1/16 2/16 4/16 8/16 1/16"),  # two are tied for the fourth place
        (SamplingRule(top_k=5), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(top_k=6), "1/16 2/16 4/16 8/16 1/16"),  # more than the vocabulary
        (SamplingRule(top_k=10**9), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(0.5, 2), "0 0 16/80 64/80 0"),
        (SamplingRule(0.0), "0 0 0 1 0"),
        (SamplingRule(0.0, 2), "0 0 0 1 0"),
        (SamplingRule(1e9), "1/5 1/5 1/5 1/5 1/5"),
        (SamplingRule(top_p=1e-9), "0 0 0 1 0"),  # at least one is kept
        (SamplingRule(top_p=0.49), "0 0 0 1 0"),
        (SamplingRule(top_p=0.51), "0 0 4/12 8/12 0"),
        (SamplingRule(top_p=0.74), "0 0 4/12 8/12 0"),
        (SamplingRule(top_p=0.76), "0 2/14 4/14 8/14 0"),
        (SamplingRule(top_p=0.88), "1/16 2/16 4/16 8/16 1/16"),  # two are tied at the threshold
        (SamplingRule(top_p=1.0), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(top_p=0.6, top_k=2), "0 0 0 1 0"),  # 8 of 12 reach it, 8 of 16 do not
        (SamplingRule(top_p=0.9, top_k=3), "0 2/14 4/14 8/14 0"),
        (SamplingRule(0.5, top_p=0.7), "0 0 0 1 0"),  # 64 of 86 reach it
        (SamplingRule(0.5, top_p=0.76), "0 0 16/80 64/80 0"),
        (SamplingRule(0.5, 3, 0.96), "0 4/84 16/84 64/84 0"),  # 80 of 84 do not reach it
        (SamplingRule(0.0, 4, 0.9), "0 0 0 1 0"),
    ],
    ids=str,
)
def test_distribution_by_hand(rule: SamplingRule, expected: str) -> None:
    by_hand = [float(Fraction(fraction)) for fraction in expected.split()]
    assert probabilities(LOGITS, rule) == pytest.approx(by_hand, abs=1e-6)


def test_temperature_2_takes_square_roots() -> None:
    weights = [1, math.sqrt(2), 2, math.sqrt(8), 1]
    expected = [weight / sum(weights) for weight in weights]
    assert probabilities(LOGITS, SamplingRule(2.0)) == pytest.approx(expected, abs=1e-6)


def test_top_p_is_reached_by_an_equal_sum() -> None:
    quarters = [0.0, 0.0, -math.inf, 0.0, 0.0]
    assert probabilities(quarters, SamplingRule(top_p=1.0)) == [0.25, 0.25, 0, 0.25, 0.25]
    assert probabilities([0.0, -math.inf], SamplingRule(top_p=1.0)) == [1, 0]
    half_and_eighths = [0.0] * 4 + [math.log(4)]
    assert probabilities(half_and_eighths, SamplingRule(top_p=0.5)) == [0, 0, 0, 0, 1]


def test_ties_at_the_threshold_are_kept() -> None:
    assert probabilities([2.0] * 4, SamplingRule(top_p=0.3)) == [0.25] * 4
    assert probabilities([2.0] * 4, SamplingRule(top_k=1)) == [0.25] * 4


@pytest.mark.parametrize("seed", range(20))
def test_top_p_keeps_the_smallest_set(seed: int) -> None:
    logits = 3 * torch.randn(1, 30, generator=torch.Generator().manual_seed(seed))
    top_p = 0.05 * (seed + 0.5)
    kept = next_probabilities(logits, SamplingRule(top_p=top_p))[0] > 0
    probabilities = logits[0].double().softmax(-1)
    total, smallest = probabilities[kept].sum(), probabilities[kept].min()
    assert total - smallest < top_p <= total
    assert probabilities[~kept].max() < smallest


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-40, 1e-50, 5e-324])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (2, None), (None, 0.9), (2, 0.9)])
def test_a_tiny_temperature_is_greedy_and_not_nan(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    rule = SamplingRule(temperature, top_k, top_p)
    assert probabilities(LOGITS, rule) == [0, 0, 0, 1, 0]
    assert probabilities([-1e4, 1e4, 3e4], rule) == [0, 0, 1]


@pytest.mark.parametrize("scale", [1e4, 1e30, 1e35])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_huge_logits_do_not_overflow(scale: float, top_p: float | None) -> None:
    logits = [scale * logit for logit in LOGITS]
    for temperature in (1.0, 1e-5):
        rule = SamplingRule(temperature, top_p=top_p)
        assert probabilities(logits, rule) == [0, 0, 0, 1, 0]


EXTREMES = [
    5e-324,
    1e-310,
    1e-46,
    1e-45,
    1e-38,
    1e-6,
    1e30,
    3.4e38,
    1e39,
    1e308,
    sys.float_info.max,
]
INF = math.inf


@pytest.mark.parametrize("temperature", [0.0, -0.0, 1.0, *EXTREMES])
@pytest.mark.parametrize("top_k", [None, 1, 3, 2**63, 10**400])
@pytest.mark.parametrize("top_p", [None, 5e-324, 1e-310, 1e-46, 1e-45, 1 - 2**-53, 1 - 1e-17])
def test_extreme_rules_give_probabilities(
    temperature: float, top_k: int | None, top_p: float | None
) -> None:
    rule = SamplingRule(temperature, top_k, top_p)
    for logits in (LOGITS, [0.0] * 5, [-INF, 2.0, -INF, 1.0, 0.0], [3e38, -3e38, 0.0, 1.0, 2.0]):
        distribution = torch.tensor(probabilities(logits, rule))
        assert (distribution >= 0).all()
        assert distribution.sum().item() == pytest.approx(1, abs=1e-6)
        assert distribution[torch.tensor(logits) == -INF].sum() == 0
        for u in (0.0, LAST):
            drawn = sample_ids(distribution[None], torch.tensor([u]))
            assert distribution[drawn] > 0


@pytest.mark.parametrize("temperature", [1e30, 3.4e38, 1e39, sys.float_info.max])
def test_a_huge_temperature_is_uniform_over_the_kept_ids(temperature: float) -> None:
    assert probabilities(LOGITS, SamplingRule(temperature)) == pytest.approx([0.2] * 5)
    assert probabilities(LOGITS, SamplingRule(temperature, 2)) == [0, 0, 0.5, 0.5, 0]


@pytest.mark.parametrize("top_p", [5e-324, 1e-310, 1e-46, 1e-45, 1e-38])
def test_a_tiny_top_p_keeps_the_most_likely_id(top_p: float) -> None:
    assert probabilities(LOGITS, SamplingRule(top_p=top_p)) == [0, 0, 0, 1, 0]


def test_greedy_takes_one_of_tied_ids() -> None:
    assert sorted(probabilities([1.0, 3.0, 3.0], SamplingRule(0.0))) == [0, 0, 1]


def test_rows_are_independent_and_logits_unchanged() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    for rule in (SamplingRule(0.7, 3, 0.8), SamplingRule(), SamplingRule(0.0)):
        batched = next_probabilities(logits, rule)
        single = torch.cat([next_probabilities(row[None], rule) for row in logits])
        torch.testing.assert_close(batched, single)
        assert batched.sum(-1).allclose(torch.ones(7))
        assert batched.dtype == logits.dtype
    assert logits.equal(before)
    assert (next_probabilities(logits, SamplingRule(top_k=3)) > 0).sum(-1).eq(3).all()


@pytest.mark.parametrize(
    ("rule", "name"),
    [({"temperature": -0.1}, "temperature"), ({"temperature": math.inf}, "temperature"),
     ({"temperature": math.nan}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_k": -3}, "top_k"),
     ({"top_p": 0.0}, "top_p"), ({"top_p": -0.1}, "top_p"), ({"top_p": 1.01}, "top_p"),
     ({"top_p": math.nan}, "top_p")],
    ids=str,
)  # fmt: skip
def test_rule_out_of_range_is_refused(rule: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be") as error:
        SamplingRule(**rule)
    assert "\n" not in str(error.value)


# drawing ids


@pytest.mark.parametrize(
    ("distribution", "u", "expected"),
    [
        ([0.25, 0, 0.5, 0.25], 0.0, 0),
        ([0.25, 0, 0.5, 0.25], 0.25 - 2**-24, 0),
        ([0.25, 0, 0.5, 0.25], 0.25, 2),
        ([0.25, 0, 0.5, 0.25], 0.75 - 2**-24, 2),
        ([0.25, 0, 0.5, 0.25], 0.75, 3),
        ([0.25, 0, 0.5, 0.25], LAST, 3),
        ([0, 0.5, 0.5, 0, 0], 0.0, 1),
        ([0, 0.5, 0.5, 0, 0], 0.5, 2),
        ([0, 0.5, 0.5, 0, 0], LAST, 2),
        ([0, 0, 1], 0.0, 2),
        ([1, 0, 0], LAST, 0),
        ([1], LAST, 0),
    ],
)
def test_drawn_id_is_the_first_whose_cumulative_probability_exceeds_u(
    distribution: list[float], u: float, expected: int
) -> None:
    drawn = sample_ids(torch.tensor([distribution]).float(), torch.tensor([u]))
    assert drawn.tolist() == [expected]
    assert drawn.dtype == torch.int64


def test_evenly_spaced_numbers_draw_ids_in_proportion_to_their_probabilities() -> None:
    u = torch.arange(1600) / 1600
    drawn = sample_ids(next_probabilities(torch.tensor([LOGITS] * 1600), SamplingRule()), u)
    counts = torch.bincount(drawn).tolist()
    assert counts == pytest.approx([100, 200, 400, 800, 100], abs=1)


@pytest.mark.parametrize("size", [3, 17, 65, 1000])
def test_ids_of_probability_0_are_never_drawn(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    distribution = torch.rand(200, size, generator=generator)
    distribution *= torch.rand(200, size, generator=generator) < 0.5
    distribution[:, size // 2] += 1e-7
    distribution[:, -1] = 0
    distribution /= distribution.sum(-1, keepdim=True)
    thresholds = distribution.cumsum(-1)[:, :: max(size // 20, 1)].T
    for u in (torch.zeros(200), torch.full((200,), LAST), *thresholds.clamp(max=LAST)):
        drawn = sample_ids(distribution, u)
        assert (distribution.gather(1, drawn[:, None]) > 0).all()


N = 100_000
# the 0.999 quantiles of chi-square: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.4
CRITICAL = {1: 10.83, 2: 13.82, 4: 18.47, 15: 37.70}


def chi_square(drawn: Tensor, expected: Sequence[float]) -> float:
    """Return the statistic of draws; infinity if an id of probability 0 is drawn."""
    counts = torch.bincount(drawn, minlength=len(expected)).tolist()
    possible = [(k, len(drawn) * p) for k, p in zip(counts, expected, strict=True) if p]
    if sum(count for count, _ in possible) < len(drawn):
        return math.inf
    return sum((k - e) ** 2 / e for k, e in possible)


def statistic(rule: SamplingRule, weights: list[float]) -> float:
    """Return the chi-square of N draws by a rule, from 50 streams, for the expected weights."""
    u = torch.cat(list(islice(uniform_streams(3, 50), N // 50)))
    distribution = next_probabilities(torch.tensor([LOGITS]), rule).expand(N, -1)
    return chi_square(sample_ids(distribution, u), [weight / sum(weights) for weight in weights])


# rules with weights computed by hand, and slightly wrong rules
K, P, ALL = SamplingRule(0.5, 3), SamplingRule(0.5, top_p=0.9), SamplingRule(0.5, 3, 0.92)
EXPECTED = {
    "top_k": (K, [0, 4, 16, 64, 0]),
    "top_p": (P, [0, 0, 16, 64, 0]),
    "both": (ALL, [0, 0, 16, 64, 0]),
    "neither": (SamplingRule(0.5), [1, 4, 16, 64, 1]),
}
WRONG = {
    "top_k + 1": ("top_k", SamplingRule(0.5, 4)),
    "top_k - 1": ("top_k", SamplingRule(0.5, 2)),
    "no top_k": ("top_k", SamplingRule(0.5)),
    "top_p + 0.05": ("top_p", SamplingRule(0.5, top_p=0.95)),
    "top_p - 0.2": ("top_p", SamplingRule(0.5, top_p=0.7)),
    "no top_p": ("top_p", SamplingRule(0.5)),
    "temperature + 5 %": ("top_k", SamplingRule(0.525, 3)),
    "temperature - 5 %": ("neither", SamplingRule(0.475)),
    "inverted temperature": ("top_p", SamplingRule(2.0, top_p=0.7)),
    "both, top_p + 0.05": ("both", SamplingRule(0.5, 3, 0.97)),
    "both, temperature + 5 %": ("both", SamplingRule(0.525, 3, 0.92)),
}


@pytest.mark.parametrize(("rule", "weights"), EXPECTED.values(), ids=EXPECTED)
def test_draws_follow_the_distribution(rule: SamplingRule, weights: list[float]) -> None:
    degrees = sum(weight > 0 for weight in weights) - 1
    assert statistic(rule, weights) < CRITICAL[degrees]


@pytest.mark.parametrize(("expected", "wrong"), WRONG.values(), ids=WRONG)
def test_draws_by_a_wrong_rule_are_detected(expected: str, wrong: SamplingRule) -> None:
    assert statistic(wrong, EXPECTED[expected][1]) > 50


# random numbers


def first_numbers(n: int, *seed_and_samples: int) -> Tensor:
    return torch.stack(list(islice(uniform_streams(*seed_and_samples), n)), 1)  # (samples, n)


def test_random_numbers_of_a_sample_only_depend_on_seed_and_index() -> None:
    expected = first_numbers(3 * STEPS_PER_DRAW + 1, 8, 7)
    assert expected.shape == (7, 3 * STEPS_PER_DRAW + 1)
    for first, n in ((0, 1), (0, 3), (2, 5), (6, 1)):
        found = first_numbers(3 * STEPS_PER_DRAW + 1, 8, n, first)
        assert found.equal(expected[first : first + n])


def test_seeds_and_samples_have_different_numbers() -> None:
    seeds = [*range(20), 2**31, 2**32, 2**32 + 1, 2**63 - 1]
    rows = torch.cat([first_numbers(4, seed, 20) for seed in seeds])
    assert len(rows.unique(dim=0)) == len(rows) == 20 * len(seeds)


@pytest.mark.parametrize("steps", [1, 1000])
def test_random_numbers_are_uniform_over_samples_and_over_steps(steps: int) -> None:
    numbers = first_numbers(steps, 1337, 20_000 // steps).flatten()
    assert numbers.dtype == torch.float32
    assert 0 <= numbers.min() < numbers.max() < 1
    assert chi_square((16 * numbers).long(), [1 / 16] * 16) < CRITICAL[15]


def test_streams_do_not_change_the_global_random_state() -> None:
    state = torch.get_rng_state()
    first_numbers(100, 1, 3)
    assert torch.get_rng_state().equal(state)
