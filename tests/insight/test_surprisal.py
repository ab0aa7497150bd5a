"""Every character is scored once, from exactly the documented context."""

import pytest
import torch
from torch import Tensor

from nanogpt.insight.surprisal import surprisal
from nanogpt.models import GPT, Bigram, BigramConfig
from tests.models.oracles import RAGGED, random_gpt

START_ID = 3
V = RAGGED["vocab_size"]


def some_text(length: int) -> Tensor:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(8)).byte()


def first_position(target: int, length: int, block_size: int, stride: int | None = None) -> int:
    """The start of the first window that contains a target; position 0 is ``START_ID``."""
    last, stride = max(length - block_size, 0), stride or (block_size + 1) // 2
    starts = [start for start in range(last + 1) if start % stride == 0]
    return next(start for start in [*starts, last] if target < start + block_size)


@torch.no_grad()
def one_by_one(model: GPT, text: Tensor, stride: int | None = None) -> Tensor:
    """The log-probabilities (N, V), with one forward pass for each character."""
    sequence, rows = [START_ID, *text.tolist()], []
    for target in range(len(text)):
        start = first_position(target, len(text), model.block_size, stride)
        n_context = target + 1 - start
        least = model.block_size // 2 + 1 if stride is None else model.block_size - stride + 1
        assert n_context == target + 1 or n_context >= least
        context = torch.tensor([sequence[start : target + 1]])
        rows.append(model(context)[0, -1].log_softmax(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("block_size", [1, 2, 5, 8])
@pytest.mark.parametrize("batch_characters", [1, 20, 2**14])
def test_gpt_equals_one_pass_per_character(
    block_size: int, batch_characters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanogpt.insight.surprisal.BATCH_CHARACTERS", batch_characters)
    model = random_gpt({**RAGGED, "n_layer": 1, "block_size": block_size})
    lengths = range(1, 4 * block_size + 1) if batch_characters == 20 else (1, 4 * block_size - 1)
    for length in lengths:
        text = some_text(length)
        logs = one_by_one(model, text)
        scored = surprisal(model, START_ID, text, k=4)
        nats = -logs[torch.arange(length), text.long()]
        torch.testing.assert_close(scored.nats.double(), nats, rtol=1e-5, atol=1e-5)
        top, likely = logs.topk(4)
        assert scored.likely.equal(likely.int())
        torch.testing.assert_close(scored.probabilities.double(), top.exp(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3, 8])
def test_windows_overlap_as_chosen(stride: int) -> None:
    model, text = random_gpt({**RAGGED, "n_layer": 1, "block_size": 8}), some_text(43)
    nats = -one_by_one(model, text, stride)[torch.arange(43), text.long()]
    scored = surprisal(model, START_ID, text, stride=stride).nats.double()
    torch.testing.assert_close(scored, nats, rtol=1e-5, atol=1e-5)
    other = surprisal(model, START_ID, text, stride=9 - stride).nats
    assert (scored - other).abs().max() > 1e-3


def test_bigram_equals_its_table() -> None:
    model, text = Bigram(V, BigramConfig(block_size=6)), some_text(100)
    logs = model.token_embedding.weight.detach().double().log_softmax(-1)
    before = torch.cat([torch.tensor([START_ID]), text[:-1].long()])
    scored = surprisal(model, START_ID, text, k=2)
    torch.testing.assert_close(
        scored.nats.double(), -logs[before, text.long()], rtol=1e-6, atol=1e-6
    )
    assert scored.likely[:, 0].equal(logs.argmax(-1)[before].int())


def test_context_contains_the_documented_characters_and_no_later_ones() -> None:
    model, text, target = random_gpt({**RAGGED, "block_size": 8}), some_text(40), 30
    scored = surprisal(model, START_ID, text).nats
    for other in range(40):
        changed = text.clone()
        changed[other] = (changed[other] + 1) % V
        differs = bool(
            (surprisal(model, START_ID, changed).nats[target] - scored[target]).abs() > 1e-4
        )
        first = first_position(target, 40, 8) - 1  # START_ID precedes the text
        assert differs == (first <= other <= target), other


def test_batches_are_bounded_and_results_are_float32() -> None:
    model, sizes = Bigram(V, BigramConfig(block_size=64)).bfloat16(), []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
    scored = surprisal(model, START_ID, some_text(100_000))
    assert max(sizes) == 2**14
    assert len(sizes) == 13
    assert scored.nats.shape == (100_000,)
    assert scored.nats.dtype == scored.probabilities.dtype == torch.float32


def test_k_is_at_most_the_vocabulary_size() -> None:
    model = Bigram(3, BigramConfig())
    scored = surprisal(model, 0, torch.tensor([2, 1]), k=5)
    assert scored.likely.shape == scored.probabilities.shape == (2, 3)
    torch.testing.assert_close(scored.probabilities.sum(-1), torch.ones(2))
    assert surprisal(model, 0, torch.tensor([2, 1]), k=0).likely.shape == (2, 0)
