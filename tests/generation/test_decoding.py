"""Decoding follows its rules in words, and a cache changes nothing but what is computed."""

import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate, chain, count, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.generation.decoding import Context, decode
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models import Bigram
from nanogpt.models.kv_cache import Cache
from tests.models.oracles import RAGGED, loud_gpt, loud_models

BLOCK = 6
CONTEXTS: tuple[Context, ...] = ("refill", "exact")
every_context = pytest.mark.parametrize("context", CONTEXTS)
RULES = pytest.mark.parametrize(
    "rule", [SamplingRule(), SamplingRule(0.7, 3), SamplingRule(top_p=0.6), SamplingRule(0.0)],
    ids=str,
)  # fmt: skip


def prompts(batch: int, length: int) -> Tensor:
    return torch.randint(17, (batch, length), generator=torch.Generator().manual_seed(length))


class Spy(nn.Module):
    """Passes everything on, and notes the ids that a model is fed and its last logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.block_size, self.new_cache = model, model.block_size, model.new_cache
        self.fed, self.logits = list[Tensor](), list[Tensor]()

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        logits = self.model(ids, cache)
        self.fed.append(ids.clone())
        self.logits.append(logits[:, -1])
        return logits

    @property
    def lengths(self) -> list[int]:
        return [ids.shape[1] for ids in self.fed]


def run(spy: Any, prompt: Tensor, n: int, rule: SamplingRule | None = None, **how: Any) -> Tensor:
    """Decode n ids for each row, (B, n), by chance of seed 5."""
    drawn = decode(spy, prompt, n, rule or SamplingRule(), uniform_streams(5, len(prompt)), **how)
    return torch.stack(list(drawn), 1)


# the rules, in words


def lengths_shown(context: Context, block_size: int, prompt: int) -> Iterator[int]:
    """How many of the last ids each step is to see, by arithmetic."""
    if context == "exact":
        return (min(length, block_size) for length in count(prompt))
    growing = range(min(prompt, block_size), block_size + 1)
    again = range(max(block_size // 2, 1), block_size + 1)
    return chain(growing, chain.from_iterable(again for _ in count()))


def weights_of(logits: list[float], rule: SamplingRule) -> list[float]:
    """Return what each id weighs: of the likeliest ones as many as there may be and must be."""
    least = sorted(logits, reverse=True)[(rule.top_k or len(logits)) - 1]
    weights = [math.exp(x / rule.temperature) if x >= least else 0.0 for x in logits]
    kept, enough = set[int](), (rule.top_p or 1.0) * sum(weights)
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if sum(weights[k] for k in kept) < enough:
            kept.add(i)
    return [weight if i in kept else 0.0 for i, weight in enumerate(weights)]


def pick(logits: list[float], rule: SamplingRule, number: float) -> int:
    """Draw one id by going through them until their weights add up to the number."""
    if rule.temperature == 0:
        return max(range(len(logits)), key=lambda i: logits[i])
    weights = weights_of(logits, rule)
    goal = number * sum(weights)
    return next(i for i, reached in enumerate(accumulate(weights)) if reached > goal)


def naive(
    model: Any, prompt: list[int], numbers: list[float], rule: SamplingRule, context: Context
) -> list[int]:
    """Decode one row: for each character show the model what the rule says, and pick."""
    ids, shown = list(prompt), lengths_shown(context, model.block_size, len(prompt))
    for number, length in zip(numbers, shown, strict=False):
        logits = model(torch.tensor([ids[-length:]]))[0, -1].tolist()
        ids.append(pick(logits, rule, number))
    return ids[len(prompt) :]


@RULES
@every_context
@pytest.mark.parametrize("block_size", [1, 5, 6])
def test_the_plain_loop_is_its_rule_in_words(
    rule: SamplingRule, context: Context, block_size: int
) -> None:
    gpt = loud_gpt({**RAGGED, "block_size": block_size, "n_layer": 1})
    numbers = [number.item() for number, _ in zip(uniform_streams(5, 1), range(10), strict=False)]
    for length in {1, block_size, block_size + 1, 3 * block_size}:
        prompt = prompts(1, length)
        drawn = run(gpt, prompt, 10, rule, context=context, cached=False)
        assert drawn[0].tolist() == naive(gpt, prompt[0].tolist(), numbers, rule, context)


@pytest.mark.parametrize(
    ("block_size", "context", "expected"),
    [
        (6, "exact", [2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6]),
        (6, "refill", [2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]),
        (5, "refill", [2, 3, 4, 5, 2, 3, 4, 5, 2, 3, 4]),
        (2, "refill", [2, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2]),
        (1, "refill", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_model_is_shown_the_end_of_the_text(
    block_size: int, context: Context, expected: list[int]
) -> None:
    spy, prompt = Spy(Bigram(17, block_size)), prompts(1, 2)
    text = torch.cat([prompt, run(spy, prompt, 11, context=context, cached=False)], 1)
    ends = range(2, 13)
    for fed, end, length in zip(spy.fed, ends, expected, strict=True):
        assert fed.equal(text[:, end - length : end])


@every_context
def test_of_a_long_prompt_only_the_last_block_counts(context: Context) -> None:
    gpt, prompt = loud_gpt({**RAGGED, "block_size": BLOCK}), prompts(1, 3 * BLOCK)
    last = run(gpt, prompt[:, -BLOCK:], 10, context=context)
    assert run(gpt, prompt, 10, context=context).equal(last)


# the cache

MODELS = loud_models(BLOCK)
CASES = [(1, 1), (7, 1), (1, BLOCK), (7, BLOCK), (1, BLOCK + 1), (7, 3 * BLOCK)]


def cached_and_plain(model: Any, batch: int, length: int, context: Context) -> tuple[Spy, Spy]:
    """Decode past two refills in both ways; the ids must be equal."""
    spies, prompt = (Spy(model), Spy(model)), prompts(batch, length)
    ours, plain = (
        run(spy, prompt, 10, context=context, cached=cached)
        for spy, cached in zip(spies, (True, False), strict=True)
    )
    assert ours.equal(plain)
    return spies


def largest_difference(ours: Spy, plain: Spy) -> float:
    pairs = zip(ours.logits, plain.logits, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
@every_context
def test_the_cached_loop_equals_the_plain_one(name: str, context: Context) -> None:
    for batch, length in CASES:
        assert largest_difference(*cached_and_plain(MODELS[name], batch, length, context)) < 1e-10


@every_context
def test_the_same_holds_for_prompts_of_any_length(context: Context) -> None:
    for length in range(1, 3 * BLOCK + 1):
        spies = cached_and_plain(MODELS["ragged"], 1 if length % 2 else 7, length, context)
        assert largest_difference(*spies) < 1e-10


@pytest.mark.parametrize("name", ["gpt", "ragged", "sinusoidal", "mean", "bigram"])
@every_context
def test_the_same_holds_in_float32(name: str, context: Context) -> None:
    model = deepcopy(MODELS[name]).float()
    for batch, length in CASES[-2:]:
        assert largest_difference(*cached_and_plain(model, batch, length, context)) < 1e-4


@pytest.mark.parametrize(
    ("block_size", "context", "expected"),
    [
        (6, "exact", [3, 1, 1, 1, 6, 6, 6, 6, 6, 6, 6, 6]),
        (6, "refill", [3, 1, 1, 1, 3, 1, 1, 1, 3, 1, 1, 1]),
        (7, "refill", [3, 1, 1, 1, 1, 3, 1, 1, 1, 1, 3, 1]),
        (1, "refill", [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_step_computes_one_position_unless_the_window_moves(
    block_size: int, context: Context, expected: list[int]
) -> None:
    spy = Spy(loud_gpt({**RAGGED, "block_size": block_size}))
    run(spy, prompts(1, 3), 12, context=context)
    assert spy.lengths == expected


def test_refill_computes_more_than_one_position_at_most_once_in_half_a_block() -> None:
    for block_size in range(2, 14):
        spy = Spy(Bigram(17, block_size))
        run(spy, prompts(1, 1), 100)
        refills = [step for step, length in enumerate(spy.lengths) if length > 1]
        between = [later - step for step, later in pairwise(refills)]
        assert min(between, default=100) >= block_size // 2


# the rest


@RULES
def test_rows_of_a_batch_are_decoded_each_from_its_own_prompt(rule: SamplingRule) -> None:
    gpt, prompt = loud_gpt({**RAGGED, "block_size": BLOCK}), prompts(7, 3)
    drawn = run(gpt, prompt, 15, rule)
    for i in range(7):
        alone = decode(gpt, prompt[i : i + 1], 15, rule, uniform_streams(5, 1, first=i))
        assert drawn[i].equal(torch.cat(list(alone)))


def test_ids_come_one_at_a_time() -> None:
    spy = Spy(Bigram(17, BLOCK))
    stream = decode(spy, prompts(1, 2), 1000, SamplingRule(), uniform_streams(5, 1))
    next(stream)
    next(stream)
    assert len(spy.fed) == 2


@pytest.mark.parametrize("n", [0, 1, 5])
def test_as_many_ids_come_as_are_asked_for(n: int) -> None:
    drawn = list(decode(Bigram(17, 3), prompts(2, 1), n, SamplingRule(), uniform_streams(0, 2)))
    assert [ids.shape for ids in drawn] == [(2,)] * n


def test_the_prompt_is_left_as_it_was_and_may_be_bytes() -> None:
    gpt, prompt = loud_gpt({**RAGGED, "block_size": BLOCK}), prompts(2, 9)
    kept, small = prompt.clone(), prompt.to(torch.uint8)
    assert run(gpt, small, 5).equal(run(gpt, prompt, 5))
    assert prompt.equal(kept)


# what comes out of it all

N = 40_000
RULE = SamplingRule(0.8, 3, 0.9)


def surprise(drawn_by: SamplingRule, rule: SamplingRule, cached: bool = True) -> float:
    """How far N pairs of characters that are drawn by one rule lie from another one's.

    It is their chi-square in standard deviations of a normal distribution, by the cube root of
    Wilson and Hilferty (1931); infinite where a pair is drawn that cannot be. The second character
    is drawn after a refill.
    """
    gpt = loud_gpt({"vocab_size": 4, "block_size": 3, "n_layer": 1, "n_head": 1, "n_embd": 4})
    numbers = torch.rand(2, N, generator=torch.Generator().manual_seed(2))

    def distribution(*ids: int) -> Tensor:
        weights = torch.tensor(weights_of(gpt(torch.tensor([ids]))[0, -1].tolist(), rule))
        return weights / weights.sum()

    first = distribution(0, 3, 1)
    expected = N * torch.stack([first[i] * distribution(i) for i in range(4)]).flatten()
    prompt = torch.tensor([[0, 3, 1]]).expand(N, -1)
    one, two = decode(gpt, prompt, 2, drawn_by, iter(numbers), cached=cached)
    counts, possible = torch.bincount(4 * one + two, minlength=16), expected > 0
    if counts[~possible].any():
        return math.inf
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum().item()
    freedom = int(possible.sum()) - 1
    spread = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("rule", [SamplingRule(), RULE], ids=str)
def test_pairs_are_as_frequent_as_the_models_probabilities_say(
    rule: SamplingRule, cached: bool
) -> None:
    assert abs(surprise(rule, rule, cached)) < 3


@pytest.mark.parametrize(
    "wrong",
    [SamplingRule(0.8, 2, 0.9), SamplingRule(0.8, 4, 0.9), SamplingRule(0.84, 3, 0.9),
     SamplingRule(0.76, 3, 0.9), SamplingRule(0.8, 3, 0.95)],
    ids=str,
)  # fmt: skip
def test_pairs_drawn_by_another_rule_would_be_seen(wrong: SamplingRule) -> None:
    assert surprise(wrong, RULE) > 6
