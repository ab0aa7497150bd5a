"""The learning rate by hand, the optimizers, and that the rate is the one that they get."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.models import ModernGPT
from nanogpt.training import optimizer
from nanogpt.training.optimizer import (
    Muon,
    Schedule,
    build_optimizer,
    learning_rate_factor,
    orthogonal,
)
from tests.command_lines import Run
from tests.training.oracles import curves, run_folder

HALF_ROOT = math.sqrt(0.5)
SETTINGS: dict[str, Any] = {
    "optimizer": "adamw", "learning_rate": 3e-4, "muon_learning_rate": 0.02,
    "betas": [0.9, 0.999], "weight_decay": 0.01,
}  # fmt: skip


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
        ("linear", 0, {0: 1, 40: 1, 70: 0.5, 99: 1 / 60, 100: 0, 5000: 0}),
        ("linear", 4, {0: 0.2, 3: 0.8, 4: 1, 40: 1, 70: 0.5}),
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
    (group,) = build_optimizer(model, SETTINGS, fused=False).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.999), 0.01)
    assert group["eps"] == 1e-8


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape)) for shape in ((6, 10), (10, 6), (8, 8), (6, 10))]


def steps(optimizer: Any, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Where five steps lead by gradients that change."""
    noise = torch.Generator().manual_seed(4)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=noise)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_muon_steps_as_pytorchs_does(monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    monkeypatch.setattr(optimizer, "fast_bf16", lambda _: True)  # as PyTorch's computes, always
    ours, theirs = matrices(), matrices()
    steps(Muon(ours, lr=0.1, weight_decay=decay), ours)
    steps(torch.optim.Muon(theirs, lr=0.1, weight_decay=decay), theirs)
    for begin, our, their in zip(matrices(), ours, theirs, strict=True):
        assert (our - their).norm() < 0.02 * (their - begin).norm()


@pytest.mark.parametrize("wrong", [{"momentum": 0.9}, {"lr": 0.11}, {"weight_decay": 0.1}])
def test_muon_with_another_setting_would_be_seen(wrong: dict[str, float]) -> None:
    ours, theirs = matrices(), matrices()
    steps(Muon(ours, **{"lr": 0.1, **wrong}), ours)
    steps(torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0), theirs)
    moved = zip(matrices(), ours, theirs, strict=True)
    assert max((our - their).norm() / (their - begin).norm() for begin, our, their in moved) > 0.03


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_what_is_made_orthogonal_keeps_its_directions(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    left, right = u.T @ newton_schulz(torch.stack([matrix, 100 * matrix])) @ v.T
    assert left.diagonal().min() > 0.5
    assert left.diagonal().max() < 1.3
    assert (left - left.diagonal().diag()).abs().max() < 1e-3
    assert left.allclose(right, atol=1e-3)
    assert s.max() > 2  # which it was not before


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    net = ModernGPT(17, 8, 2, 2, 8)
    muon, adamw = build_optimizer(net, {**SETTINGS, "optimizer": "muon"}, False).param_groups
    assert {tuple(p.shape) for p in muon["params"]} == {(24, 8), (8, 8), (32, 8), (8, 32)}
    assert {tuple(p.shape) for p in adamw["params"]} == {(17, 8)}
    assert len(muon["params"]) + len(adamw["params"]) == len(list(net.parameters()))
    assert (muon["lr"], adamw["lr"]) == (0.02, 3e-4)
    assert muon["weight_decay"] == adamw["weight_decay"] == 0.01


def test_both_go_on_from_their_state() -> None:
    def trained(net: ModernGPT, rule: Any) -> None:
        for _ in range(3):
            net(torch.arange(8)[None]).square().mean().backward()
            rule.step()
            rule.zero_grad()

    settings, net = {**SETTINGS, "optimizer": "muon"}, ModernGPT(17, 8, 1, 2, 8)
    nn.init.normal_(net.lm_head.weight)
    rule = build_optimizer(net, settings, fused=True)
    trained(net, rule)
    again = deepcopy(net)
    other = build_optimizer(again, settings, fused=True)
    other.load_state_dict(deepcopy(rule.state_dict()))
    trained(net, rule)
    trained(again, other)
    assert all(a.equal(b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


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
