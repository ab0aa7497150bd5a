"""The textbook's loop, against which speed is measured, does what the reference did."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.textbook import CONFIGS, GPT, NAMES, Sizes, Training
from nanogpt import models
from nanogpt.insight.reference import Losses, read_curve
from tests.command_lines import SHARED_TEXT

# no two sizes alike, and heads that do not join to the width
SMALL = replace(
    Sizes.of(CONFIGS / "gpt_small.yaml"), block_size=7, n_layer=2, n_head=3, n_embd=16, dropout=0.0
)


@pytest.fixture(autouse=True)
def own_chance() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


@pytest.mark.skipif(not SHARED_TEXT.is_file(), reason="no tiny Shakespeare here")
def test_the_bigrams_rows_are_the_references_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(SHARED_TEXT.parent))
    training = Training(Sizes.of(CONFIGS / "bigram.yaml"))
    rows = [
        Losses(step, round(train, 4), round(val, 4))
        for step, train, val in islice(training.rows(5000), 3)
    ]
    assert rows == read_curve("bigram")[:3]
    assert [row.step for row in rows] == [0, 300, 600]


@pytest.mark.parametrize("name", NAMES[1:])
def test_it_is_the_model_of_its_config(name: str) -> None:
    sizes = Sizes.of(CONFIGS / f"{name}.yaml")
    textbook = GPT(65, sizes)
    ours = models.GPT(65, sizes.block_size, sizes.n_layer, sizes.n_head, sizes.n_embd)
    assert models.count_parameters(textbook) == models.count_parameters(ours)
    dropouts = [m.p for m in textbook.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [sizes.dropout] * sizes.n_layer * (sizes.n_head + 2)


def joined(textbook: GPT) -> dict[str, torch.Tensor]:
    """Its weights under the names of ours: the heads of a layer in one matrix."""
    weights = {
        name.replace("net.0", "widen").replace("net.2", "narrow"): value
        for name, value in textbook.state_dict().items()
        if ".heads." not in name
    }
    for layer, block in enumerate(textbook.blocks):
        parts = [
            getattr(head, part).weight
            for part in ("query", "key", "value")
            for head in block.attn.heads
        ]
        weights[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(parts)
    return weights


def test_its_model_is_ours_with_the_heads_apart() -> None:
    torch.manual_seed(1)
    textbook = GPT(11, SMALL).double()
    for weight in textbook.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # so that each part shows in the logits
    ours = models.GPT(11, SMALL.block_size, SMALL.n_layer, SMALL.n_head, SMALL.n_embd).double()
    ours.load_state_dict(joined(textbook))
    ids = torch.randint(11, (5, 7))
    torch.testing.assert_close(textbook(ids), ours(ids), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(textbook(ids[:, :4]), ours(ids[:, :4]), rtol=1e-10, atol=1e-10)
