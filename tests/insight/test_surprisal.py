"""Every character is scored once, from exactly the context that the rule gives it."""

import pytest
import torch
from torch import Tensor

from nanogpt.insight.surprisal import surprisal
from nanogpt.models import GPT, Bigram
from tests.models.oracles import RAGGED, loud_gpt

START = 3
V = RAGGED["vocab_size"]


def some_text(length: int) -> Tensor:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(8)).byte()


def first_in_sight(place: int, length: int, block_size: int) -> int:
    """Where the first window begins that reaches a place; the start stands at 0."""
    last = max(length - block_size, 0)
    begins = [begin for begin in range(last + 1) if begin % ((block_size + 1) // 2) == 0]
    return next(begin for begin in [*begins, last] if place < begin + block_size)


@torch.no_grad()
def one_by_one(model: GPT, text: Tensor) -> Tensor:
    """The log-probabilities (N, V) by one plain forward pass for each character."""
    sequence, rows = [START, *text.tolist()], []
    for place in range(len(text)):
        begin = first_in_sight(place, len(text), model.block_size)
        in_sight = place + 1 - begin
        assert in_sight == place + 1 or in_sight >= model.block_size // 2 + 1
        context = torch.tensor([sequence[begin : place + 1]])
        rows.append(model(context)[0, -1].log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
@pytest.mark.parametrize("at_a_time", [1, 20, 2**14])
def test_a_gpt_is_scored_as_by_one_pass_a_character(
    block_size: int, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.insight.surprisal.CHARACTERS_AT_A_TIME", at_a_time)
    model = loud_gpt({**RAGGED, "n_layer": 1, "block_size": block_size})
    lengths = range(1, 4 * block_size + 1) if at_a_time == 20 else (1, 4 * block_size - 1)
    for length in lengths:
        text = some_text(length)
        logs = one_by_one(model, text)
        scored = surprisal(model, START, text, k=4)
        nats = -logs[torch.arange(length), text.long()]
        torch.testing.assert_close(scored.nats.double(), nats, rtol=1e-5, atol=1e-5)
        chances, likely = logs.topk(4)
        assert scored.likely.equal(likely.int())
        torch.testing.assert_close(scored.chances.double(), chances.exp(), rtol=1e-4, atol=1e-6)


def test_a_bigram_is_scored_as_by_its_table() -> None:
    model, text = Bigram(V, block_size=6), some_text(100)
    logs = model.table.weight.detach().double().log_softmax(-1)
    before = torch.cat([torch.tensor([START]), text[:-1].long()])
    scored = surprisal(model, START, text, k=2)
    torch.testing.assert_close(
        scored.nats.double(), -logs[before, text.long()], rtol=1e-6, atol=1e-6
    )
    assert scored.likely[:, 0].equal(logs.argmax(-1)[before].int())


def test_all_that_is_known_of_the_past_is_used_and_nothing_of_the_future() -> None:
    model, text, place = loud_gpt({**RAGGED, "block_size": 8}), some_text(40), 30
    scored = surprisal(model, START, text).nats
    for other in range(40):
        changed = text.clone()
        changed[other] = (changed[other] + 1) % V
        differs = bool((surprisal(model, START, changed).nats[place] - scored[place]).abs() > 1e-4)
        first = first_in_sight(place, 40, 8) - 1  # the start stands before the text's own 0
        assert differs == (first <= other <= place), other


def test_batches_are_bounded_and_probabilities_in_single_precision() -> None:
    model, sizes = Bigram(V, block_size=64).bfloat16(), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    scored = surprisal(model, START, some_text(100_000))
    assert max(sizes) == 2**14
    assert len(sizes) == 13
    assert scored.nats.shape == (100_000,)
    assert scored.nats.dtype == scored.chances.dtype == torch.float32


def test_no_more_alternatives_than_characters() -> None:
    scored = surprisal(Bigram(3), 0, torch.tensor([2, 1]), k=5)
    assert scored.likely.shape == scored.chances.shape == (2, 3)
    torch.testing.assert_close(scored.chances.sum(-1), torch.ones(2))
    assert surprisal(Bigram(3), 0, torch.tensor([2, 1]), k=0).likely.shape == (2, 0)
