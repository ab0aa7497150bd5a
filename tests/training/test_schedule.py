"""The learning rate against values computed by hand, and as logged by a run."""

import math

import pytest

from nanogpt.training.schedule import Schedule, learning_rate_factor
from tests.command_lines import Run
from tests.training.oracles import curves, run_folder

HALF_ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, {0: 1, 1: 1, 99: 1, 100: 1, 1000: 1}),
        ("constant", 3, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 1000: 1}),
        (
            "cosine",  # 0.55 + 0.45 cos(π progress)
            0,
            {0: 1, 25: 0.55 + 0.45 * HALF_ROOT, 50: 0.55, 75: 0.55 - 0.45 * HALF_ROOT, 100: 0.1},
        ),
        (
            "cosine",
            20,
            {0: 1 / 21, 19: 20 / 21, 20: 1, 40: 0.55 + 0.45 * HALF_ROOT, 60: 0.55, 100: 0.1},
        ),
        ("cosine", 4, {101: 0.1, 5000: 0.1}),  # beyond the last step
        ("linear", 0, {0: 1, 40: 1, 70: 0.5, 99: 1 / 60, 100: 0, 5000: 0}),
        ("linear", 4, {0: 0.2, 3: 0.8, 4: 1, 40: 1, 70: 0.5}),
        ("cosine", 100, {0: 1 / 101, 99: 100 / 101, 100: 1}),  # only warm-up
        ("cosine", 200, {50: 51 / 201, 150: 151 / 201}),
    ],
)
def test_factor_equals_hand_computed_values(
    schedule: Schedule, warmup_steps: int, expected: dict[int, float]
) -> None:
    found = {step: learning_rate_factor(step, 100, schedule, warmup_steps) for step in expected}
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_cosine_factor_rises_then_falls_and_is_positive(warmup_steps: int) -> None:
    factors = [learning_rate_factor(step, 100, "cosine", warmup_steps) for step in range(120)]
    assert factors[: warmup_steps + 1] == sorted(factors[: warmup_steps + 1])
    assert factors[warmup_steps:] == sorted(factors[warmup_steps:], reverse=True)
    assert max(factors) == factors[warmup_steps] == 1
    assert min(factors) > 0


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_logged_learning_rate_follows_the_schedule(fit: Run, micro_batches: int) -> None:
    outcome = fit(
        *("--model.learning_rate=0.02", "--model.schedule=cosine", "--model.warmup_steps=3"),
        *("--trainer.max_steps=11", "--trainer.log_every_n_steps=1"),
        f"--trainer.accumulate_grad_batches={micro_batches}",
    )
    assert outcome.code == 0, outcome.err
    logged = curves(run_folder())["learning_rate"]
    assert list(logged) == list(range(1, 12))
    expected = {step: 0.02 * learning_rate_factor(step - 1, 11, "cosine", 3) for step in logged}
    assert logged == pytest.approx(expected, rel=1e-6)
    assert logged[4] == pytest.approx(0.02)
    assert logged[8] == pytest.approx(0.02 * 0.55)


def test_cosine_without_a_last_step_is_refused(fit: Run) -> None:
    outcome = fit("--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01")
    assert outcome.code == 2
    assert "max_steps" in outcome.err
    assert "cosine" in outcome.err
