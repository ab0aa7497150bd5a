"""Decoding equals a plain loop without a cache, which follows the context rules."""

import math
from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate, chain, count, islice, pairwise, repeat
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.generation.decoding import Context, decode
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models import build_model
from nanogpt.models.kv_cache import Cache
from tests.models.oracles import RAGGED, random_gpt, random_models

BLOCK = 6
DEFAULT_RULE = SamplingRule()
CONTEXTS: tuple[Context, ...] = ("refill", "exact")
every_context = pytest.mark.parametrize("context", CONTEXTS)
RULES = pytest.mark.parametrize(
    "rule", [SamplingRule(), SamplingRule(0.7, 3), SamplingRule(top_p=0.6), SamplingRule(0.0)],
    ids=str,
)  # fmt: skip


def prompts(batch: int, length: int) -> Tensor:
    return torch.randint(17, (batch, length), generator=torch.Generator().manual_seed(length))


def bigram(block_size: int) -> Any:
    return build_model("bigram", 17, block_size=block_size)


class Spy(nn.Module):
    """Wrap a model and record the ids it reads and the logits of the last position."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.block_size, self.new_cache = model, model.block_size, model.new_cache
        self.inputs, self.logits = list[Tensor](), list[Tensor]()

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        logits = self.model(ids, cache)
        self.inputs.append(ids.clone())
        self.logits.append(logits[:, -1])
        return logits

    @property
    def lengths(self) -> list[int]:
        return [ids.shape[1] for ids in self.inputs]


def run(
    model: Any,
    prompt: Tensor,
    n: int,
    rule: SamplingRule = DEFAULT_RULE,
    context: Context = "refill",
    cached: bool = True,
) -> Tensor:
    """Decode n ids for each row, (B, n), with seed 5."""
    loop = decode if cached else uncached
    return torch.stack(list(loop(model, prompt, n, rule, u_stream(len(prompt)), context)), 1)


def u_stream(batch: int, first: int = 0) -> Iterator[Tensor]:
    return uniform_streams(5, batch, first)


# a plain loop


def context_lengths(context: Context, block_size: int, prompt: int) -> Iterator[int]:
    """Yield the number of last ids that the model sees at each step, by arithmetic."""
    if context == "exact":
        return (min(length, block_size) for length in count(prompt))
    growing = range(min(prompt, block_size), block_size + 1)
    refilled = range(max(block_size // 2, 1), block_size + 1)
    return chain(growing, chain.from_iterable(refilled for _ in count()))


def weights_of(logits: list[float], rule: SamplingRule) -> list[float]:
    """Return the unnormalized probability of each id after top_k and top_p."""
    kth = sorted(logits, reverse=True)[(rule.top_k or len(logits)) - 1]
    weights = [math.exp(x / rule.temperature) if x >= kth else 0.0 for x in logits]
    kept, target = set[int](), (rule.top_p or 1.0) * sum(weights)
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        if sum(weights[k] for k in kept) < target:
            kept.add(i)
    return [weight if i in kept else 0.0 for i, weight in enumerate(weights)]


def pick(logits: list[float], rule: SamplingRule, u: float) -> int:
    """Draw the first id at which the sum of the weights exceeds u times their total."""
    if rule.temperature == 0:
        return max(range(len(logits)), key=lambda i: logits[i])
    weights = weights_of(logits, rule)
    return next(i for i, total in enumerate(accumulate(weights)) if total > u * sum(weights))


@torch.inference_mode()
def uncached(
    model: Any, prompt: Tensor, n: int, rule: SamplingRule, u_stream: Any, context: Context
) -> Iterator[Tensor]:
    """Decode like ``decode``, but compute the whole context at each step."""
    ids, lengths = prompt.long(), context_lengths(context, model.block_size, prompt.shape[1])
    for u, length, _ in zip(u_stream, lengths, range(n), strict=False):
        logits = model(ids[:, -length:])[:, -1]
        drawn = [pick(*row) for row in zip(logits.tolist(), repeat(rule), u.tolist())]
        ids = torch.cat([ids, torch.tensor(drawn)[:, None]], dim=1)
        yield ids[:, -1]


@RULES
@every_context
@pytest.mark.parametrize("block_size", [1, 5, 6])
def test_decoded_ids_equal_those_of_the_plain_loop(
    rule: SamplingRule, context: Context, block_size: int
) -> None:
    gpt = random_gpt({**RAGGED, "block_size": block_size, "n_layer": 1})
    for length in {1, block_size, block_size + 1, 3 * block_size}:
        prompt = prompts(1, length)
        drawn = run(gpt, prompt, 10, rule, context)
        assert drawn.equal(run(gpt, prompt, 10, rule, context, cached=False))


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
def test_context_lengths_by_hand(block_size: int, context: Context, expected: list[int]) -> None:
    assert list(islice(context_lengths(context, block_size, 2), 11)) == expected


@every_context
def test_only_the_last_block_of_a_long_prompt_is_used(context: Context) -> None:
    gpt, prompt = random_gpt({**RAGGED, "block_size": BLOCK}), prompts(1, 3 * BLOCK)
    last = run(gpt, prompt[:, -BLOCK:], 10, context=context)
    assert run(gpt, prompt, 10, context=context).equal(last)


# the cache

MODELS = random_models(BLOCK)
CASES = [(1, 1), (7, 1), (1, BLOCK), (7, BLOCK), (1, BLOCK + 1), (7, 3 * BLOCK)]


def largest_difference(model: Any, batch: int, length: int, context: Context) -> float:
    """Return the largest difference in logits from the plain loop, across two refills."""
    ours, plain, prompt = Spy(model), Spy(model), prompts(batch, length)
    ids = run(ours, prompt, 10, context=context)
    assert ids.equal(run(plain, prompt, 10, context=context, cached=False))
    pairs = zip(ours.logits, plain.logits, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
@every_context
def test_cached_logits_equal_those_of_the_plain_loop(name: str, context: Context) -> None:
    for batch, length in CASES:
        assert largest_difference(MODELS[name], batch, length, context) < 1e-10


@every_context
def test_cached_logits_are_equal_for_prompts_of_any_length(context: Context) -> None:
    for length in range(1, 3 * BLOCK + 1):
        batch = 1 if length % 2 else 7
        assert largest_difference(MODELS["ragged"], batch, length, context) < 1e-10


@pytest.mark.parametrize("name", ["gpt", "ragged", "sinusoidal", "mean", "bigram"])
@every_context
def test_cached_logits_are_equal_in_float32(name: str, context: Context) -> None:
    model = deepcopy(MODELS[name]).float()
    for batch, length in CASES[-2:]:
        assert largest_difference(model, batch, length, context) < 1e-4


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
    spy = Spy(random_gpt({**RAGGED, "block_size": block_size}))
    run(spy, prompts(1, 3), 12, context=context)
    assert spy.lengths == expected


def test_refills_are_at_least_half_a_block_apart() -> None:
    for block_size in range(2, 14):
        spy = Spy(bigram(block_size))
        run(spy, prompts(1, 1), 100)
        refills = [step for step, length in enumerate(spy.lengths) if length > 1]
        between = [later - step for step, later in pairwise(refills)]
        assert min(between, default=100) >= block_size // 2


# batches and inputs


@RULES
def test_rows_of_a_batch_are_independent(rule: SamplingRule) -> None:
    gpt, prompt = random_gpt({**RAGGED, "block_size": BLOCK}), prompts(7, 3)
    drawn = run(gpt, prompt, 15, rule)
    for i in range(7):
        single = decode(gpt, prompt[i : i + 1], 15, rule, u_stream(1, first=i))
        assert drawn[i].equal(torch.cat(list(single)))


def test_ids_are_yielded_one_at_a_time() -> None:
    spy = Spy(bigram(BLOCK))
    stream = decode(spy, prompts(1, 2), 999, DEFAULT_RULE, u_stream(1))
    next(stream)
    next(stream)
    assert len(spy.inputs) == 2


@pytest.mark.parametrize("n", [0, 1, 5])
def test_number_of_ids(n: int) -> None:
    drawn = list(decode(bigram(3), prompts(2, 1), n, DEFAULT_RULE, u_stream(2)))
    assert [ids.shape for ids in drawn] == [(2,)] * n


def test_prompt_is_not_changed_and_may_be_uint8() -> None:
    gpt, prompt = random_gpt({**RAGGED, "block_size": BLOCK}), prompts(2, 9)
    before, small = prompt.clone(), prompt.to(torch.uint8)
    assert run(gpt, small, 5).equal(run(gpt, prompt, 5))
    assert prompt.equal(before)


# frequencies

N = 40_000
RULE = SamplingRule(0.8, 3, 0.9)


def statistic(drawn_by: SamplingRule, rule: SamplingRule) -> float:
    """Return a test statistic of N pairs of ids drawn by one rule, for the pairs of another rule.

    It is the chi-square in standard deviations of a normal distribution, by the cube root of Wilson
    and Hilferty (1931), or infinity if a pair of probability 0 is drawn. The second id is drawn
    after a refill.
    """
    gpt = random_gpt({"vocab_size": 4, "block_size": 3, "n_layer": 1, "n_head": 1, "n_embd": 4})
    u = torch.rand(2, N, generator=torch.Generator().manual_seed(2))

    def distribution(*ids: int) -> Tensor:
        weights = torch.tensor(weights_of(gpt(torch.tensor([ids]))[0, -1].tolist(), rule))
        return weights / weights.sum()

    first = distribution(0, 3, 1)
    expected = N * torch.stack([first[i] * distribution(i) for i in range(4)]).flatten()
    prompt = torch.tensor([[0, 3, 1]]).expand(N, -1)
    first_ids, second_ids = decode(gpt, prompt, 2, drawn_by, iter(u))
    counts, possible = torch.bincount(4 * first_ids + second_ids, minlength=16), expected > 0
    if counts[~possible].any():
        return math.inf
    chi_square = ((counts - expected) ** 2 / expected)[possible].sum().item()
    degrees = int(possible.sum()) - 1
    variance = 2 / (9 * degrees)
    return ((chi_square / degrees) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)


@pytest.mark.parametrize("rule", [DEFAULT_RULE, RULE], ids=str)
def test_frequencies_of_pairs_follow_the_probabilities_of_the_model(rule: SamplingRule) -> None:
    assert abs(statistic(rule, rule)) < 3


@pytest.mark.parametrize(
    "wrong",
    [SamplingRule(0.8, 2, 0.9), SamplingRule(0.8, 4, 0.9), SamplingRule(0.84, 3, 0.9),
     SamplingRule(0.76, 3, 0.9), SamplingRule(0.8, 3, 0.95)],
    ids=str,
)  # fmt: skip
def test_pairs_drawn_by_a_wrong_rule_are_detected(wrong: SamplingRule) -> None:
    assert statistic(wrong, RULE) > 6
