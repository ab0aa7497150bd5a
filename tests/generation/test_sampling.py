"""Sampling rules: distributions by hand, and draws that follow them."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation.sampling import SamplingRule, draw, next_probabilities

# Logits whose exponentials are 1, 2, 4, 8 and 1: so probabilities are fractions of 16.
LOGITS = [0.0, math.log(2), math.log(4), math.log(8), 0.0]


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
        (SamplingRule(top_k=4), "1/16 2/16 4/16 8/16 1/16"),  # two share the fourth place
        (SamplingRule(top_k=5), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(top_k=6), "1/16 2/16 4/16 8/16 1/16"),  # more than there are
        (SamplingRule(top_k=10**9), "1/16 2/16 4/16 8/16 1/16"),
        (SamplingRule(0.5, 2), "0 0 16/80 64/80 0"),
        (SamplingRule(0.0), "0 0 0 1 0"),
        (SamplingRule(0.0, 2), "0 0 0 1 0"),
        (SamplingRule(1e9), "1/5 1/5 1/5 1/5 1/5"),
    ],
    ids=str,
)
def test_distribution_by_hand(rule: SamplingRule, expected: str) -> None:
    by_hand = [float(Fraction(fraction)) for fraction in expected.split()]
    assert probabilities(LOGITS, rule) == pytest.approx(by_hand, abs=1e-6)


def test_warmer_is_flatter_by_the_square_root() -> None:
    weights = [1, math.sqrt(2), 2, math.sqrt(8), 1]
    expected = [weight / sum(weights) for weight in weights]
    assert probabilities(LOGITS, SamplingRule(2.0)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-30, 1e-40, 1e-50, 5e-324])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_tiny_temperature_is_greedy_and_not_nan(temperature: float, top_k: int | None) -> None:
    rule = SamplingRule(temperature, top_k)
    assert probabilities(LOGITS, rule) == [0, 0, 0, 1, 0]
    assert probabilities([-1e4, 1e4, 3e4], rule) == [0, 0, 1]


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_do_not_overflow(scale: float) -> None:
    logits = [scale * logit for logit in LOGITS]
    assert probabilities(logits, SamplingRule()) == [0, 0, 0, 1, 0]


def test_greedy_takes_one_of_equals() -> None:
    assert sorted(probabilities([1.0, 3.0, 3.0], SamplingRule(0.0))) == [0, 0, 1]


def test_rows_are_independent_and_logits_untouched() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    kept = logits.clone()
    for rule in (SamplingRule(0.7, 3), SamplingRule(), SamplingRule(0.0)):
        together = next_probabilities(logits, rule)
        alone = torch.cat([next_probabilities(row[None], rule) for row in logits])
        torch.testing.assert_close(together, alone)
        assert together.sum(-1).allclose(torch.ones(7))
        assert together.dtype == logits.dtype
    assert logits.equal(kept)
    assert (next_probabilities(logits, SamplingRule(top_k=3)) > 0).sum(-1).eq(3).all()


@pytest.mark.parametrize(
    ("temperature", "top_k", "name"),
    [(-0.1, None, "temperature"), (math.inf, None, "temperature"), (math.nan, None, "temperature"),
     (1.0, 0, "top_k"), (1.0, -3, "top_k")],
)  # fmt: skip
def test_a_rule_out_of_range_is_refused(temperature: float, top_k: int | None, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be"):
        SamplingRule(temperature, top_k)


def surprise(rule: SamplingRule, expected: list[float], n: int = 20_000) -> float:
    """How far n draws lie from a distribution: chi-square, in standard deviations above its mean.

    Infinite where something is drawn that cannot be.
    """
    generator = torch.Generator().manual_seed(1)
    drawn = draw(next_probabilities(torch.tensor([LOGITS]), rule).expand(n, -1), generator)
    counts = torch.bincount(drawn, minlength=len(LOGITS)).tolist()
    possible = [(count, n * p) for count, p in zip(counts, expected, strict=True) if p]
    if sum(count for count, _ in possible) < n:
        return math.inf
    freedom = len(possible) - 1
    return (sum((k - e) ** 2 / e for k, e in possible) - freedom) / math.sqrt(2 * freedom)


# cubes, of the three likeliest
EXPECTED = [0, 8 / 584, 64 / 584, 512 / 584, 0]


def test_draws_follow_the_distribution() -> None:
    assert surprise(SamplingRule(1 / 3, 3), EXPECTED) < 3


@pytest.mark.parametrize(
    "wrong",
    [SamplingRule(1 / 3, 2), SamplingRule(1 / 3, 4), SamplingRule(1.0, 3), SamplingRule(3.0, 3),
     SamplingRule(1 / 3)],
    ids=["top_k less one", "top_k plus one", "no temperature", "multiplied by it", "no top_k"],
)  # fmt: skip
def test_draws_by_another_rule_would_be_seen(wrong: SamplingRule) -> None:
    assert surprise(wrong, EXPECTED) > 10


def test_draws_take_the_generator_and_leave_global_chance_alone() -> None:
    distribution = torch.full((100, 5), 0.2)
    state = torch.get_rng_state()
    first, again = (draw(distribution, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.equal(again)
    assert first.shape == (100,)
    assert torch.get_rng_state().equal(state)
    assert not first.equal(draw(distribution, torch.Generator().manual_seed(4)))
