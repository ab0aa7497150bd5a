"""The optimizers against PyTorch's own, in bfloat16 and in float32 on every machine."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.models import ModernConfig, ModernGPT
from nanogpt.training import optimizer
from nanogpt.training.optimizer import Muon, build_optimizer, newton_schulz
from tests.command_lines import Run

HPARAMS: dict[str, Any] = {
    "optimizer": "adamw", "learning_rate": 3e-4, "muon_learning_rate": 0.02,
    "betas": [0.9, 0.999], "weight_decay": 0.01,
}  # fmt: skip


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=["bf16", "float32"])
def muon_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """Make Muon compute in a dtype, whatever is fast on this machine."""
    dtype: torch.dtype = request.param
    monkeypatch.setattr(optimizer, "fast_bf16", lambda _: dtype == torch.bfloat16)
    return dtype


def test_adamw_has_one_group_of_all_parameters() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    (group,) = build_optimizer(model, HPARAMS, fused=False).param_groups
    assert len(group["params"]) == len(list(model.parameters()))
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.999), 0.01)
    assert group["eps"] == 1e-8


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(3)
    return [nn.Parameter(torch.randn(shape)) for shape in ((6, 10), (10, 6), (8, 8), (6, 10))]


def train(optimizer: Any, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Return the parameters after five steps with varying gradients."""
    noise = torch.Generator().manual_seed(4)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = parameter.detach() + torch.randn(parameter.shape, generator=noise)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def distance_from_pytorch(decay: float = 0.0, **changed: float) -> float:
    """Return how far Muon ends from PyTorch's, relative to the distance that it moved.

    PyTorch's always computes in bfloat16.
    """
    ours, theirs = matrices(), matrices()
    settings = {"lr": 0.1, "weight_decay": decay}
    train(Muon(ours, **{**settings, **changed}), ours)
    train(torch.optim.Muon(theirs, **settings), theirs)
    moved = zip(matrices(), ours, theirs, strict=True)
    return max(((a - b).norm() / (b - start).norm()).item() for start, a, b in moved)


@pytest.mark.usefixtures("muon_dtype")
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_muon_equals_pytorchs(decay: float) -> None:
    assert distance_from_pytorch(decay) < 0.02


@pytest.mark.usefixtures("muon_dtype")
@pytest.mark.parametrize("wrong", [{"momentum": 0.9}, {"lr": 0.11}, {"weight_decay": 0.1}])
def test_wrong_muon_settings_are_detected(wrong: dict[str, float]) -> None:
    assert distance_from_pytorch(**wrong) > 0.03


# bfloat16 has 8 significant bits, and each iteration amplifies small singular values 3.4 times
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (7, 7)])
def test_newton_schulz_keeps_the_singular_vectors(
    dtype: torch.dtype, tolerance: float, shape: tuple[int, int]
) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    result = newton_schulz(torch.stack([matrix, 100 * matrix]).to(dtype))
    assert result.dtype == dtype
    singular_values, of_scaled = u.T @ result.float() @ v.T
    diagonal = singular_values.diagonal()
    assert 0.5 < diagonal.min() < diagonal.max() < 1.3
    assert (singular_values - diagonal.diag()).abs().max() < tolerance
    assert singular_values.allclose(of_scaled, atol=tolerance)
    assert s.max() > 2  # of the input


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = ModernGPT(17, ModernConfig(block_size=8, n_layer=2, n_head=2, n_embd=8))
    muon, adamw = build_optimizer(model, {**HPARAMS, "optimizer": "muon"}, False).param_groups
    assert {tuple(p.shape) for p in muon["params"]} == {(24, 8), (8, 8), (32, 8), (8, 32)}
    assert {tuple(p.shape) for p in adamw["params"]} == {(17, 8)}
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))
    assert (muon["lr"], adamw["lr"]) == (0.02, 3e-4)
    assert muon["weight_decay"] == adamw["weight_decay"] == 0.01


@pytest.mark.usefixtures("muon_dtype")
def test_combined_optimizer_resumes_from_its_state() -> None:
    def train(model: ModernGPT, optimizer: Any) -> None:
        for _ in range(3):
            model(torch.arange(8)[None]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    hparams = {**HPARAMS, "optimizer": "muon"}
    model = ModernGPT(17, ModernConfig(block_size=8, n_layer=1, n_head=2, n_embd=8))
    nn.init.normal_(model.lm_head.weight)
    first = build_optimizer(model, hparams, fused=True)
    train(model, first)
    copy = deepcopy(model)
    second = build_optimizer(copy, hparams, fused=True)
    second.load_state_dict(deepcopy(first.state_dict()))
    train(model, first)
    train(copy, second)
    assert all(a.equal(b) for a, b in zip(model.parameters(), copy.parameters(), strict=True))


def test_muon_needs_matrices(fit: Run) -> None:
    outcome = fit(
        *("--model.optimizer=muon", "--model.architecture=bigram", "--model.init=null"),
        *("--model.n_layer=null", "--model.n_head=null", "--model.n_embd=null"),
    )
    assert outcome.code == 2
    message = "muon is for the matrices of blocks, and the bigram has none: set optimizer to adamw"
    assert outcome.err == f"error: {message}\n"
    assert not Path("lightning_logs").exists()
    with pytest.raises(UserError, match="the model has none"):
        build_optimizer(nn.Linear(2, 3), {**HPARAMS, "optimizer": "muon"}, False)
