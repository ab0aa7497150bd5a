"""The learning rate by hand, and that it is the one that the optimizer gets."""

import math

import pytest
from torch import nn

from nanogpt.training.optimizer import Schedule, adamw, learning_rate_factor
from tests.commands import Run
from tests.training.oracles import curves, run_folder

HALF_ROOT = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("schedule", "warmup_steps", "expected"),
    [
        ("constant", 0, {0: 1, 1: 1, 99: 1, 100: 1, 1000: 1}),
        ("constant", 3, {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 1000: 1}),
        (
            "cosine",  # at a share of its way: 0.55 + 0.45 cos of as much of π
            0,
            {0: 1, 25: 0.55 + 0.45 * HALF_ROOT, 50: 0.55, 75: 0.55 - 0.45 * HALF_ROOT, 100: 0.1},
        ),
        (
            "cosine",
            20,
            {0: 1 / 21, 19: 20 / 21, 20: 1, 40: 0.55 + 0.45 * HALF_ROOT, 60: 0.55, 100: 0.1},
        ),
        ("cosine", 4, {101: 0.1, 5000: 0.1}),  # beyond the last step
        ("cosine", 100, {0: 1 / 101, 99: 100 / 101, 100: 1}),  # nothing but warm-up
        ("cosine", 200, {50: 51 / 201, 150: 151 / 201}),
    ],
)
def test_factor_at_named_steps(
    schedule: Schedule, warmup_steps: int, expected: dict[int, float]
) -> None:
    found = {step: learning_rate_factor(step, 100, schedule, warmup_steps) for step in expected}
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
def test_factor_rises_then_falls_and_is_never_zero(warmup_steps: int) -> None:
    factors = [learning_rate_factor(step, 100, "cosine", warmup_steps) for step in range(120)]
    assert factors[: warmup_steps + 1] == sorted(factors[: warmup_steps + 1])
    assert factors[warmup_steps:] == sorted(factors[warmup_steps:], reverse=True)
    assert max(factors) == factors[warmup_steps] == 1
    assert min(factors) > 0


def test_every_parameter_is_treated_alike() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    (group,) = adamw(model.parameters(), 3e-4, (0.9, 0.999), 0.01, fused=False).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.999), 0.01)
    assert group["eps"] == 1e-8


@pytest.mark.parametrize("parts", [1, 2])
def test_the_logged_rate_is_the_formulas(fit: Run, parts: int) -> None:
    outcome = fit(
        *("--model.learning_rate=0.02", "--model.schedule=cosine", "--model.warmup_steps=3"),
        *("--trainer.max_steps=11", "--trainer.log_every_n_steps=1"),
        f"--trainer.accumulate_grad_batches={parts}",
    )
    assert outcome.code == 0, outcome.err
    logged = curves(run_folder())["learning_rate"]
    assert list(logged) == list(range(1, 12))
    # after a step stands the rate of the next one
    expected = {step: 0.02 * learning_rate_factor(step, 11, "cosine", 3) for step in logged}
    assert logged == pytest.approx(expected, rel=1e-6)
    assert logged[3] == pytest.approx(0.02)
    assert logged[7] == pytest.approx(0.02 * 0.55)
    assert logged[11] == pytest.approx(0.002)


def test_a_cosine_that_has_no_last_step_is_refused(fit: Run) -> None:
    outcome = fit("--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01")
    assert outcome.code == 2
    assert "max_steps" in outcome.err
    assert "cosine" in outcome.err
