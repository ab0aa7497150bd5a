"""Decoding is the plain loop, across the border of the context, and leaves no trace."""

import pytest
import torch
from torch import Tensor, nn

from nanogpt.generation.decoding import decode, sample_text, sample_texts, start_ids
from nanogpt.generation.sampling import SamplingRule
from nanogpt.models import GPT
from nanogpt.text.tokenizer import Tokenizer

BLOCK = 6
RULES = pytest.mark.parametrize(
    "rule", [SamplingRule(), SamplingRule(0.7, 3), SamplingRule(0.0)], ids=str
)


def model(dropout: float = 0.0) -> GPT:
    """A GPT whose logits depend much on all of the context: its weights are loud."""
    torch.manual_seed(0)
    gpt = GPT(9, BLOCK, n_layer=2, n_head=2, n_embd=8, dropout=dropout).eval()
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.7)
    return gpt


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(gpt: GPT, prompt: list[int], n: int, rule: SamplingRule, seed: int) -> list[int]:
    """Decode one row with no more than softmax, sorting and a multinomial draw."""
    generator, ids = seeded(seed), list(prompt)
    for _ in range(n):
        with torch.no_grad():
            logits = gpt(torch.tensor([ids[-BLOCK:]]))[0, -1].tolist()
        if rule.temperature == 0:
            ids.append(max(range(9), key=lambda i: logits[i]))
            continue
        least = sorted(logits, reverse=True)[(rule.top_k or 9) - 1]
        kept = torch.tensor([x if x >= least else -torch.inf for x in logits])
        weights = (kept / rule.temperature).softmax(0)
        ids.append(int(torch.multinomial(weights, 1, generator=generator)))
    return ids[len(prompt) :]


@RULES
@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_decoding_equals_a_naive_loop_across_the_border(rule: SamplingRule, length: int) -> None:
    gpt, prompt = model(), [(5 * i + 1) % 9 for i in range(length)]
    drawn = decode(gpt, torch.tensor([prompt]), 2 * BLOCK + 3, rule, seeded(7))
    assert torch.cat(list(drawn)).tolist() == naive(gpt, prompt, 2 * BLOCK + 3, rule, 7)


class Spy(nn.Module):
    """Says that the next id is the first of its context, and notes what it is shown."""

    block_size = BLOCK

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[list[int]] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.shown += ids.tolist()
        logits = nn.functional.one_hot(ids[:, :1], 9).expand(-1, ids.shape[1], -1) * 100.0
        return torch.cat([torch.zeros_like(logits[:, :-1]), logits[:, -1:]], 1)


def test_the_model_is_shown_the_last_block_size_ids_and_its_last_position_counts() -> None:
    spy, prompt = Spy(), [1, 2, 3, 4, 5, 6, 7, 8]
    drawn = torch.cat(list(decode(spy, torch.tensor([prompt]), 4, SamplingRule())))
    assert drawn.tolist() == [3, 4, 5, 6]
    text = prompt + drawn.tolist()
    assert spy.shown == [text[i - BLOCK : i] for i in range(8, 12)]


@RULES
def test_rows_of_a_batch_are_decoded_each_from_its_own_prompt(rule: SamplingRule) -> None:
    gpt, prompts = model(), torch.tensor([[1, 2, 3], [7, 0, 8]])
    drawn = torch.stack(list(decode(gpt, prompts, 15, rule, seeded(3))), 1)
    assert drawn.shape == (2, 15)
    if rule.temperature == 0:  # no draw decides, so each row is what it is alone
        for row, prompt in zip(drawn, prompts, strict=True):
            assert row.equal(torch.cat(list(decode(gpt, prompt[None], 15, rule))))


def test_ids_come_one_at_a_time() -> None:
    spy = Spy()
    stream = decode(spy, torch.tensor([[1, 2]]), 1000, SamplingRule())
    next(stream)
    next(stream)
    assert len(spy.shown) == 2


@pytest.mark.parametrize("n", [0, 1, 5])
def test_as_many_ids_come_as_are_asked_for(n: int) -> None:
    assert len(list(decode(model(), torch.tensor([[1]]), n, SamplingRule(), seeded(0)))) == n


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "expected"),
    [("\nab", "", [0]), ("ab\n", "", [2]), ("ab", "", [0]), ("\nab", "ba", [2, 1])],
)
def test_decoding_starts_from_the_prompt_or_a_line_break(
    vocabulary: str, prompt: str, expected: list[int]
) -> None:
    start = start_ids(Tokenizer(vocabulary), prompt)
    assert start.dtype == torch.int64
    assert start.tolist() == [expected]


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_touches_neither_chance_nor_the_models_mode_nor_its_gradients(
    training: bool,
) -> None:
    gpt, tokenizer = model(dropout=0.5).train(training), Tokenizer("\nabcdefgh")
    state = torch.get_rng_state()
    first, again, other = (sample_text(gpt, tokenizer, 30, seed) for seed in (5, 5, 6))
    assert torch.get_rng_state().equal(state)
    assert {module.training for module in gpt.modules()} == {training}
    assert first == again != other
    assert len(first) == 30
    assert all(parameter.grad is None for parameter in gpt.parameters())
    torch.manual_seed(99)  # neither has it an influence, nor has dropout
    assert sample_text(gpt.eval(), tokenizer, 30, 5) == first


def test_a_sample_follows_its_prompt_and_leaves_it_out() -> None:
    gpt, tokenizer = model(), Tokenizer("\nabcdefgh")
    text = sample_texts(gpt, tokenizer, 1, 12, 5, prompt="abc", rule=SamplingRule(0.8, 4))[0]
    expected = naive(gpt, [1, 2, 3], 12, SamplingRule(0.8, 4), 5)
    assert text == tokenizer.decode(torch.tensor(expected))
    assert sample_text(gpt, tokenizer, 0, 5) == ""
