"""The loss by position equals that of a loop over the windows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.insight.loss_by_position import bin_means, loss_by_position
from nanogpt.models import Bigram, BigramConfig
from tests.models.oracles import RAGGED, random_gpt

V, BLOCK = RAGGED["vocab_size"], RAGGED["block_size"]


def some_text(length: int) -> Tensor:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(4)).byte()


@torch.no_grad()
def one_by_one(model: nn.Module, text: Tensor, block_size: int) -> Tensor:
    """The losses (windows, T) of all full windows, with one forward pass for each."""
    windows = []
    for start in range(0, len(text) - block_size, block_size):
        ids = text[start : start + block_size + 1].long()
        logits = model(ids[None, :-1])[0]
        windows.append(F.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(windows).double()


@pytest.mark.parametrize("batch_characters", [1, 3 * BLOCK, 2**14])
@pytest.mark.parametrize("length", [BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 7 * BLOCK + 5])
def test_equals_a_loop_over_the_full_windows(
    batch_characters: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.text.batches.EVALUATION_CHARACTERS", batch_characters)
    model, text = random_gpt(RAGGED), some_text(length)
    losses = loss_by_position(model, text)
    assert losses.shape == (BLOCK,)
    torch.testing.assert_close(losses, one_by_one(model, text, BLOCK).mean(0), rtol=1e-6, atol=1e-6)


def test_mean_equals_the_mean_loss_of_the_full_windows() -> None:
    model, text = random_gpt(RAGGED), some_text(20 * BLOCK + 1)
    inputs, targets = text[:-1].long().view(20, BLOCK), text[1:].long()
    with torch.no_grad():
        mean = F.cross_entropy(model(inputs).flatten(0, 1), targets)
    assert loss_by_position(model, text).mean().item() == pytest.approx(mean.item(), rel=1e-6)


def test_bigram_does_not_gain_from_context() -> None:
    model = Bigram(7, BigramConfig(block_size=5))
    cycle = (torch.arange(7 * 5 * 4 + 1) % 7).byte()  # each character at each position
    losses = loss_by_position(model, cycle)
    assert losses.std() < 1e-6
    pairs = model.token_embedding.weight.log_softmax(-1)[torch.arange(7), (torch.arange(7) + 1) % 7]
    assert losses[0].item() == pytest.approx(-pairs.mean().item(), rel=1e-6)


def test_uniform_model_has_the_logarithm_of_the_vocabulary_size_as_loss() -> None:
    model = Bigram(V, BigramConfig(block_size=6))
    nn.init.zeros_(model.token_embedding.weight)
    losses = loss_by_position(model, some_text(100))
    torch.testing.assert_close(losses, torch.full((6,), math.log(V)).double())


def test_loss_decreases_once_the_context_is_long_enough() -> None:
    class Repeats(nn.Module):
        """Predicts the character two before the last; uniform where there is none."""

        block_size = 6

        def forward(self, ids: Tensor) -> Tensor:
            return F.pad(100.0 * F.one_hot(ids[:, :-2], 4), (0, 0, 2, 0))

    text = torch.tensor([0, 2, 3] * 13)
    expected = torch.tensor([math.log(4)] * 2 + [0.0] * 4).double()
    torch.testing.assert_close(loss_by_position(Repeats(), text), expected)


def test_two_bins_per_octave_contain_each_position_once() -> None:
    losses = torch.arange(1.0, 65).double()  # the loss at each position is its number
    bins = bin_means(losses)
    assert [middle for middle, _ in bins] == [1, 2, 3, 4, 5.5, 8, 11.5, 16.5, 23, 32.5, 46, 59]
    assert all(abs(mean - middle) <= 0.5 for middle, mean in bins)


def test_window_of_one_character_has_one_bin() -> None:
    assert bin_means(torch.tensor([2.5]).double()) == [(1, 2.5)]
