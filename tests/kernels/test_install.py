"""``kernels.install`` changes neither weights nor results, in any architecture."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from nanogpt import kernels
from nanogpt.kernels.attention import FusedAttention
from nanogpt.kernels.dropout import FastDropout
from nanogpt.kernels.elementwise import ComplexRotary, FastSquaredReLU
from nanogpt.models import build_model
from tests.models.oracles import TOLERANCE, largest_difference, random_models

MODELS = random_models(block_size=13)


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_stay_the_same(name: str) -> None:
    plain = deepcopy(MODELS[name]).train().requires_grad_()
    fast = kernels.install(deepcopy(plain))
    assert fast.state_dict().keys() == plain.state_dict().keys()
    ids, results = torch.randint(17, (3, 13)), []
    for model in (plain, fast):
        logits = model(ids)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(logits.square().sum(), weights, materialize_grads=True)
        results.append([logits, *gradients])
    tolerance = 1e-5 if name in ("modern", "token shift") else TOLERANCE  # float32 rotary tables
    scale = max(gradient.abs().max().item() for gradient in results[0])
    assert largest_difference(*results) < tolerance * max(scale, 1.0)


def test_all_parts_are_replaced_and_keep_their_mode() -> None:
    for architecture in ("gpt", "modern"):
        model = kernels.install(build_model(architecture, 17, n_layer=2, dropout=0.1).eval())
        kinds = {type(module) for module in model.modules()}
        assert not kinds & set(kernels.REPLACEMENTS)
        assert {FusedAttention, FastDropout} <= kinds
        assert not any(module.training for module in model.modules())
    assert {ComplexRotary, FastSquaredReLU} <= kinds


def test_installing_twice_changes_nothing() -> None:
    model = kernels.install(build_model("modern", 17, n_layer=2, dropout=0.1))
    before = list(model.modules())
    assert list(kernels.install(model).modules()) == before


def test_modules_of_other_types_are_left_alone() -> None:
    class OwnDropout(nn.Dropout):
        pass

    model = nn.Sequential(OwnDropout(0.5), nn.Linear(2, 2))
    assert isinstance(kernels.install(model)[0], OwnDropout)
