"""The GPT equals two independent implementations, is causal, and applies dropout where it should.

Every check runs on the plain modules and with the fast kernels installed.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanogpt import kernels
from nanogpt.models import GPT, GPTConfig
from tests.models.oracles import (
    DIVIDING,
    RAGGED,
    TOLERANCE,
    B,
    T,
    causality_violations,
    influence,
    keep_factor,
    naive_logits,
    parity_error,
    plain_keep_factor,
    random_gpt,
    some_ids,
    torch_logits,
)

BOTH_SIZES = pytest.mark.parametrize("settings", [DIVIDING, RAGGED], ids=["dividing", "ragged"])
BOTH_WAYS = pytest.mark.parametrize("installed", [False, True], ids=["plain", "kernels"])


@BOTH_WAYS
def test_logits_and_gradients_equal_pytorchs_transformer_layers(installed: bool) -> None:
    assert parity_error(random_gpt(DIVIDING, installed=installed), torch_logits) < TOLERANCE


@BOTH_WAYS
@BOTH_SIZES
def test_logits_and_gradients_equal_naive_loops(settings: dict[str, int], installed: bool) -> None:
    assert parity_error(random_gpt(settings, installed=installed), naive_logits) < TOLERANCE


@BOTH_WAYS
@BOTH_SIZES
def test_dropout_acts_on_attention_weights_and_after_both_layers(
    settings: dict[str, int], installed: bool
) -> None:
    oracle = partial(naive_logits, p=0.3, keep=keep_factor if installed else plain_keep_factor)
    assert parity_error(random_gpt(settings, 0.3, installed), oracle) < TOLERANCE


@BOTH_WAYS
@BOTH_SIZES
def test_dropout_does_nothing_in_evaluation(settings: dict[str, int], installed: bool) -> None:
    assert parity_error(random_gpt(settings, 0.3, installed).eval(), naive_logits) < TOLERANCE


@BOTH_WAYS
@BOTH_SIZES
def test_a_position_depends_on_itself_and_the_past_only(
    settings: dict[str, int], installed: bool
) -> None:
    assert causality_violations(random_gpt(settings, installed=installed)) == 0


@BOTH_WAYS
def test_dropout_does_not_reveal_the_future(installed: bool) -> None:
    assert not influence(random_gpt(RAGGED, 0.3, installed)).triu(1).any()


def test_a_block_with_zero_output_projections_is_the_identity() -> None:
    block = random_gpt(RAGGED).blocks[0]
    for branch in (block.attn.out_proj, block.mlp.down_proj):
        nn.init.zeros_(branch.weight)
        nn.init.zeros_(branch.bias)
    x = torch.randn(B, T, RAGGED["n_embd"], dtype=torch.float64)
    assert torch.equal(block(x), x)


@BOTH_WAYS
def test_logits_of_a_prefix_do_not_depend_on_the_rest(installed: bool) -> None:
    model = random_gpt(RAGGED, installed=installed)
    ids = some_ids(model)
    for length in (1, 4, T):
        prefix = model(ids[:, :length])
        torch.testing.assert_close(prefix, model(ids)[:, :length], atol=TOLERANCE, rtol=0)


@BOTH_WAYS
def test_bf16_autocast_is_close_to_float32(installed: bool) -> None:
    torch.manual_seed(0)
    model = GPT(65, GPTConfig(16, n_layer=2, n_head=3, n_embd=48, dropout=0.2))
    if installed:
        kernels.install(model)
    ids, results = torch.randint(65, (9, 16)), []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = model(ids)
            loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append([logits.float(), *gradients])
    bounds = [0.01] + [0.1] * len(gradients)  # rounding across a ReLU's kink changes gradients
    for exact, rounded, bound in zip(*results, bounds, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *((name, 0) for name in (*DIVIDING, "head_size") if name != "vocab_size"),
        ("n_layer", -1),
        ("dropout", -0.1),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("init", "xavier"),
    ],
)
def test_an_invalid_setting_is_named(setting: str, value: Any) -> None:
    settings = {name: size for name, size in RAGGED.items() if name != "vocab_size"}
    with pytest.raises(ValueError, match=f"{setting} must .*not '?{value}"):
        GPTConfig(**{**settings, setting: value})


def test_an_input_longer_than_block_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"14.*block_size.*13"):
        random_gpt(RAGGED)(torch.zeros(1, 14, dtype=torch.int64))
