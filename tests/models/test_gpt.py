"""The GPT equals two independent constructions of it, sees no future, and drops where it should."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanogpt.models import GPT
from tests.models.oracles import (
    DIVIDING,
    RAGGED,
    TOLERANCE,
    B,
    T,
    causality_violations,
    influence,
    loud_gpt,
    naive_logits,
    parity_error,
    some_ids,
    torch_logits,
)

BOTH = pytest.mark.parametrize("settings", [DIVIDING, RAGGED], ids=["dividing", "ragged"])


def test_logits_and_gradients_equal_those_of_pytorchs_own_layers() -> None:
    assert parity_error(loud_gpt(DIVIDING), torch_logits) < TOLERANCE


@BOTH
def test_logits_and_gradients_equal_those_of_plain_loops(settings: dict[str, int]) -> None:
    assert parity_error(loud_gpt(settings), naive_logits) < TOLERANCE


@BOTH
def test_dropout_acts_on_weights_and_after_projection_and_mlp(settings: dict[str, int]) -> None:
    error = parity_error(loud_gpt(settings, dropout=0.3), partial(naive_logits, p=0.3))
    assert error < TOLERANCE


@BOTH
def test_dropout_does_nothing_in_evaluation(settings: dict[str, int]) -> None:
    assert parity_error(loud_gpt(settings, dropout=0.3).eval(), naive_logits) < TOLERANCE


@BOTH
def test_a_position_depends_on_just_itself_and_its_past(settings: dict[str, int]) -> None:
    assert causality_violations(loud_gpt(settings)) == 0


def test_a_position_sees_no_future_when_weights_are_dropped() -> None:
    assert not influence(loud_gpt(RAGGED, dropout=0.3)).triu(1).any()


def test_a_block_whose_branches_are_silent_is_the_identity() -> None:
    block = loud_gpt(RAGGED).blocks[0]
    for branch in (block.attn.out_proj, block.mlp.down_proj):
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
    x = torch.randn(B, T, RAGGED["n_embd"], dtype=torch.float64)
    assert torch.equal(block(x), x)


def test_logits_of_a_prefix_do_not_depend_on_what_follows() -> None:
    model = loud_gpt(RAGGED)
    ids = some_ids(model)
    for length in (1, 4, T):
        prefix = model(ids[:, :length])
        torch.testing.assert_close(prefix, model(ids)[:, :length], atol=TOLERANCE, rtol=0)


def test_bf16_autocast_stays_near_float32_in_logits_and_gradients() -> None:
    torch.manual_seed(0)
    model, results = GPT(65, 16, n_layer=2, n_head=3, n_embd=48, dropout=0.2), []
    ids = torch.randint(65, (9, 16))
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(ids)
            loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([logits.float(), *gradients])
    bounds = [0.01] + [0.1] * len(gradients)  # gradients jump where rounding crosses a ReLU's kink
    for exact, rounded, bound in zip(*results, bounds, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, 0) for name in (*DIVIDING, "head_size")),
        ("n_layer", -1),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("init", "xavier"),
    ],
)
def test_a_bad_setting_is_named(setting: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{setting} must .*not '?{value}"):
        GPT(**{**RAGGED, setting: value})


def test_too_long_an_input_is_refused_with_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"14.*block_size.*13"):
        GPT(**RAGGED)(torch.zeros(1, 14, dtype=torch.int64))
