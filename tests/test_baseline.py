"""The baseline reproduces the reference, and its GPT equals ours."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.baseline import CONFIGS, GPT, NAMES, Sizes, Training
from nanogpt import models
from nanogpt.insight.reference import Losses, read_curve
from tests.command_lines import SHARED_TEXT

# sizes that all differ, and an n_embd that is not a multiple of n_head
SMALL = replace(
    Sizes.from_config(CONFIGS / "gpt_small.yaml"),
    block_size=7,
    n_layer=2,
    n_head=3,
    n_embd=16,
    dropout=0.0,
)


@pytest.fixture(autouse=True)
def isolated_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def our_gpt(vocab_size: int, sizes: Sizes) -> models.GPT:
    """Our GPT of the same sizes."""
    config = models.GPTConfig(sizes.block_size, sizes.n_layer, sizes.n_head, sizes.n_embd)
    return models.GPT(vocab_size, config)


@pytest.mark.skipif(not SHARED_TEXT.is_file(), reason="no tiny Shakespeare here")
def test_bigram_evaluations_equal_the_reference_to_the_last_digit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOGPT_DATA_DIR", str(SHARED_TEXT.parent))
    training = Training(Sizes.from_config(CONFIGS / "bigram.yaml"))
    rows = [
        Losses(step, round(train, 4), round(val, 4))
        for step, train, val in islice(training.evaluations(5000), 3)
    ]
    assert rows == read_curve("bigram")[:3]
    assert [row.step for row in rows] == [0, 300, 600]


@pytest.mark.parametrize("name", NAMES[1:])
def test_model_has_the_parameters_and_dropout_of_its_config(name: str) -> None:
    sizes = Sizes.from_config(CONFIGS / f"{name}.yaml")
    baseline = GPT(65, sizes)
    assert models.count_parameters(baseline) == models.count_parameters(our_gpt(65, sizes))
    dropouts = [m.p for m in baseline.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts == [sizes.dropout] * sizes.n_layer * (sizes.n_head + 2)


def our_state_dict(baseline: GPT) -> dict[str, torch.Tensor]:
    """The baseline's weights under our names, with the heads of a layer in one matrix."""
    weights = {
        name.replace("net.0", "up_proj").replace("net.2", "down_proj"): value
        for name, value in baseline.state_dict().items()
        if ".heads." not in name
    }
    for layer, block in enumerate(baseline.blocks):
        parts = [
            getattr(head, part).weight
            for part in ("query", "key", "value")
            for head in block.attn.heads
        ]
        weights[f"blocks.{layer}.attn.qkv.weight"] = torch.cat(parts)
    return weights


def test_model_equals_ours_with_separate_heads() -> None:
    torch.manual_seed(1)
    baseline = GPT(11, SMALL).double()
    for weight in baseline.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # so that every part affects the logits
    ours = our_gpt(11, SMALL).double()
    ours.load_state_dict(our_state_dict(baseline))
    ids = torch.randint(11, (5, 7))
    torch.testing.assert_close(baseline(ids), ours(ids), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(baseline(ids[:, :4]), ours(ids[:, :4]), rtol=1e-10, atol=1e-10)
