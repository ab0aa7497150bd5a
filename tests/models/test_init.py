"""The two initializations: PyTorch's default and GPT-2's N(0, 0.02)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanogpt.models import GPT, GPTConfig

SETTINGS = {"block_size": 128, "n_layer": 2, "n_head": 6, "n_embd": 64}


def build(init: str = "default") -> GPT:
    return GPT(65, GPTConfig(**SETTINGS, init=init))


def modules(model: GPT, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_default_is_pytorchs_initialization() -> None:
    torch.manual_seed(0)
    model = build()
    for embedding in modules(model, nn.Embedding):
        assert embedding.weight.std().item() == pytest.approx(1, abs=0.05)
    for linear in modules(model, nn.Linear):
        bound = 1 / math.sqrt(linear.in_features)
        assert 0.99 * bound < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        if linear.bias is not None:
            assert 0.8 * bound < linear.bias.abs().max() <= bound


def test_normal_draws_weights_from_n_0_002_and_zeroes_biases() -> None:
    torch.manual_seed(0)
    model = build("normal")
    for module in modules(model, nn.Embedding) + modules(model, nn.Linear):
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert module.weight.mean().abs() < 0.002
        assert getattr(module, "bias", None) is None or not module.bias.any()


@pytest.mark.parametrize("init", ["default", "normal"])
def test_layer_norms_start_without_scale_or_bias(init: str) -> None:
    for norm in modules(build(init), nn.LayerNorm):
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()


# Logits that are N(0, s²) cost s²/2 more than ln 65: s² is 64 · 0.02² for `normal`, and
# 64 · 1/(3 · 64), with 1/(3 · 64) for the bias, for `default`.
@pytest.mark.parametrize(("init", "excess"), [("normal", 0.0128), ("default", 0.169)])
def test_the_first_loss_on_random_characters_is_near_ln_65(init: str, excess: float) -> None:
    torch.manual_seed(0)
    ids, targets = torch.randint(65, (2, 16, 128))
    with torch.no_grad():
        logits = build(init)(ids)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert loss.item() == pytest.approx(math.log(65) + excess, abs=0.03)
