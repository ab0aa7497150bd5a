"""Models by name: the published parameter counts, and errors that say the way out."""

from typing import Any

import pytest

from nanogpt.errors import UserError
from nanogpt.models import GPT, Bigram, build_model, count_parameters

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
    model = Bigram(5)
    model.table.requires_grad_(False)
    assert count_parameters(model) == 0


def test_a_setting_that_is_none_takes_the_models_default() -> None:
    model = build_model("gpt", 65, n_embd=12, head_size=None, block_size=None)
    assert isinstance(model, GPT)
    assert (model.block_size, model.blocks[0].attn.head_size) == (256, 2)


@pytest.mark.parametrize(
    ("name", "settings", "way_out"),
    [
        ("gp", {}, "no architecture 'gp'; choose one of bigram, gpt"),
        ("bigram", {"n_head": 3}, "bigram has no setting n_head; it has block_size: leave n_head"),
        ("gpt", {"heads": 3}, "no setting heads; it has block_size, n_layer, n_head, n_embd"),
        ("gpt", {"n_layer": 0}, "n_layer must be at least 1, not 0"),
        ("gpt", {"n_head": 0}, "n_head must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_answered_with_the_way_out(
    name: str, settings: dict[str, int], way_out: str
) -> None:
    with pytest.raises(UserError, match=way_out):
        build_model(name, 65, **settings)
