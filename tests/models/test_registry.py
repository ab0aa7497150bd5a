"""Models by name: parameter counts of the reference, and errors that say what to do."""

import json
from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.models import GPT, Bigram, BigramConfig, build_model, count_parameters
from nanogpt.models.registry import (
    ARCHITECTURES,
    build_config,
    plain_settings,
    structural_settings,
)

# The last by hand: embeddings (9 + 5) 8; block 16 + 8·63 + 21·8+8 + 16 + 8·32+32 + 32·8+8;
# final norm 16; head 8·9 + 9.
COUNTS = {
    "bigram": (4_225, "bigram", 65, {}),
    "gpt_small": (309_313, "gpt", 65, {"block_size": 128, "n_embd": 64, "dropout": 0.2}),
    "gpt10m": (10_788_929, "gpt", 65, {"block_size": 256, "n_embd": 384, "dropout": 0.2}),
    "ragged": (
        1_473,
        "gpt",
        9,
        {"block_size": 5, "n_layer": 1, "n_head": 3, "n_embd": 8, "head_size": 7},
    ),
}


@pytest.mark.parametrize(("count", "name", "vocab_size", "settings"), COUNTS.values(), ids=COUNTS)
def test_parameters_are_counted_exactly(
    count: int, name: str, vocab_size: int, settings: dict[str, Any]
) -> None:
    assert count_parameters(build_model(name, vocab_size, **settings)) == count


def test_frozen_parameters_are_not_counted() -> None:
    model = Bigram(5, BigramConfig())
    model.token_embedding.requires_grad_(False)
    assert count_parameters(model) == 0


def test_a_setting_of_none_takes_its_default() -> None:
    model = build_model("gpt", 65, n_embd=12, head_size=None, block_size=None)
    assert isinstance(model, GPT)
    assert (model.block_size, model.blocks[0].attn.head_size) == (256, 2)


@pytest.mark.parametrize(
    ("name", "settings", "way_out"),
    [
        ("gp", {}, "no architecture 'gp'; choose from bigram, gpt"),
        ("bigram", {"n_head": 3}, "bigram has no setting n_head; it has block_size: leave n_head"),
        ("gpt", {"heads": 3}, "no setting heads; it has block_size, n_layer, n_head, n_embd"),
        ("gpt", {"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ("gpt", {"n_head": 0}, "n_head must be at least 1, not 0"),
        ("gpt", {"n_layer": 2.0}, "n_layer cannot be 2.0"),
        ("gpt", {"n_layer": True}, "n_layer cannot be True"),
        ("gpt", {"dropout": "much"}, "dropout cannot be 'much'"),
        ("gpt", {"n_layer": 301}, "n_layer must be at most 300, not 301"),
        ("modern", {"token_shift": 1}, "token_shift cannot be 1"),
        ("ablated_gpt", {"parts": "attention"}, "parts cannot be 'attention'"),
        ("ablated_gpt", {"parts": [3]}, "parts cannot be"),
        ("gpt", {"n_embd": 2**40}, "too large for this machine"),
    ],
)
def test_a_mistake_is_answered_with_what_to_do(
    name: str, settings: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(UserError, match=way_out):
        build_model(name, 65, **settings)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_config_survives_a_file(architecture: str) -> None:
    config = build_config(architecture, {})
    assert build_config(architecture, json.loads(json.dumps(plain_settings(config)))) == config


def test_trained_weights_do_not_depend_on_dropout_noise_and_init() -> None:
    names = {"block_size", "n_layer", "n_head", "n_embd"}
    assert set(structural_settings("gpt")) == names | {"head_size"}
    assert set(structural_settings("modern")) == names | {"token_shift"}
    assert set(structural_settings("ablated_gpt")) == names | {"parts", "positions"}
