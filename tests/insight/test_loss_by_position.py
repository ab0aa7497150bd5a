"""The loss by position is that of a plain loop over the windows."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.insight.loss_by_position import binned, loss_by_position
from nanogpt.models import Bigram
from tests.models.oracles import RAGGED, loud_gpt

V, BLOCK = RAGGED["vocab_size"], RAGGED["block_size"]


def some_text(length: int) -> Tensor:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(4)).byte()


@torch.no_grad()
def one_by_one(model: nn.Module, text: Tensor, block_size: int) -> Tensor:
    """The losses (windows, T) of all full windows, one forward pass for each."""
    windows = []
    for begin in range(0, len(text) - block_size, block_size):
        ids = text[begin : begin + block_size + 1].long()
        logits = model(ids[None, :-1])[0]
        windows.append(F.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(windows).double()


@pytest.mark.parametrize("at_a_time", [1, 3 * BLOCK, 2**14])
@pytest.mark.parametrize("length", [BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 7 * BLOCK + 5])
def test_it_equals_a_loop_over_the_full_windows(
    at_a_time: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.text.batches.EVALUATION_CHARACTERS", at_a_time)
    model, text = loud_gpt(RAGGED), some_text(length)
    losses = loss_by_position(model, text)
    assert losses.shape == (BLOCK,)
    torch.testing.assert_close(losses, one_by_one(model, text, BLOCK).mean(0), rtol=1e-6, atol=1e-6)


def test_its_mean_is_the_mean_loss_of_the_full_windows() -> None:
    model, text = loud_gpt(RAGGED), some_text(20 * BLOCK + 1)
    inputs, targets = text[:-1].long().view(20, BLOCK), text[1:].long()
    with torch.no_grad():
        mean = F.cross_entropy(model(inputs).flatten(0, 1), targets)
    assert loss_by_position(model, text).mean().item() == pytest.approx(mean.item(), rel=1e-6)


def test_more_context_buys_a_bigram_nothing() -> None:
    model = Bigram(7, block_size=5)
    cycle = (torch.arange(7 * 5 * 4 + 1) % 7).byte()  # each character stands at each position
    losses = loss_by_position(model, cycle)
    assert losses.std() < 1e-6
    pairs = model.table.weight.log_softmax(-1)[torch.arange(7), (torch.arange(7) + 1) % 7]
    assert losses[0].item() == pytest.approx(-pairs.mean().item(), rel=1e-6)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() -> None:
    model = Bigram(V, block_size=6)
    nn.init.zeros_(model.table.weight)
    losses = loss_by_position(model, some_text(100))
    torch.testing.assert_close(losses, torch.full((6,), math.log(V)).double())


def test_the_loss_falls_where_the_context_reaches_what_helps() -> None:
    class Repeats(nn.Module):
        """Sure that the next character is the one two before the last, and clueless without."""

        block_size = 6

        def forward(self, ids: Tensor) -> Tensor:
            return F.pad(100.0 * F.one_hot(ids[:, :-2], 4), (0, 0, 2, 0))

    text = torch.tensor([0, 2, 3] * 13)
    expected = torch.tensor([math.log(4)] * 2 + [0.0] * 4).double()
    torch.testing.assert_close(loss_by_position(Repeats(), text), expected)


def test_bins_double_every_two_and_each_position_counts_once() -> None:
    losses = torch.arange(1.0, 65).double()  # the loss at each place is its number
    bins = binned(losses)
    assert [middle for middle, _ in bins] == [1, 2, 3, 4, 5.5, 8, 11.5, 16.5, 23, 32.5, 46, 59]
    assert all(abs(mean - middle) <= 0.5 for middle, mean in bins)


def test_a_window_of_one_character_is_one_bin() -> None:
    assert binned(torch.tensor([2.5]).double()) == [(1, 2.5)]
