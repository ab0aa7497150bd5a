"""As a library: the same seed gives the same text, however it is asked for."""

from itertools import islice
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation import generate as module
from nanogpt.generation.decoding import decode
from nanogpt.generation.generate import (
    TextModel,
    generate,
    generate_many,
    sample_text,
    start_ids,
)
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models import GPT
from nanogpt.text.tokenizer import Tokenizer
from tests.models.oracles import DIVIDING, loud

SIZE: dict[str, Any] = {**DIVIDING, "block_size": 6, "vocab_size": 9}
LETTERS = "\nabcdefgh"


def text_model(dropout: float = 0.0) -> TextModel:
    return TextModel(loud(GPT(**SIZE, dropout=dropout)).eval(), Tokenizer(LETTERS))


def one(model: TextModel, *args: Any, **settings: Any) -> str:
    return "".join(generate(model, *args, **settings))


def many(model: TextModel, *args: Any, **settings: Any) -> list[str]:
    return list(generate_many(model, *args, **settings))


# same seed, same text


@pytest.mark.parametrize("group", [1, 3, 64])
@pytest.mark.parametrize("rule", [SamplingRule(0.7, 4, 0.9), SamplingRule(0.0)], ids=str)
def test_a_sample_is_the_same_in_any_company(
    group: int, rule: SamplingRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = text_model(), {"max_new_tokens": 20, "rule": rule, "seed": 3}
    expected = many(model, 7, "abc", **settings)
    monkeypatch.setattr(module, "STREAMS_ON_A_CPU", group)
    for n in (4, 7):
        assert many(model, n, "abc", **settings) == expected[:n]
    assert one(model, "abc", **settings) == expected[0]
    assert all(len(sample) == 20 for sample in expected)
    assert len(set(expected)) == (1 if rule.temperature == 0 else 7)


def test_another_seed_gives_another_text() -> None:
    texts = {one(text_model(), "abc", 20, seed=seed) for seed in (0, 1, 2, 2**63 - 1)}
    assert len(texts) == 4


@pytest.mark.parametrize("context", ["refill", "exact"])
def test_text_is_what_decoding_draws_after_the_prompt(context: Any) -> None:
    model, rule = text_model(), SamplingRule(0.8, 4)
    prompt = model.tokenizer.encode("abcab").long()[None]
    ids = decode(model.model, prompt, 12, rule, uniform_streams(5, 1), context, cached=False)
    expected = model.tokenizer.decode(torch.cat(list(ids)))
    assert one(model, "abcab", 12, rule, seed=5, context=context) == expected
    assert many(model, 1, "abcab", 12, rule, seed=5, context=context) == [expected]


def test_the_two_contexts_part_where_the_window_is_full() -> None:
    refill, exact = (one(text_model(), "a", 40, context=way) for way in ("refill", "exact"))
    assert refill[:6] == exact[:6]
    assert refill != exact


# streaming


def test_a_character_comes_as_soon_as_it_is_drawn() -> None:
    model, steps = text_model(), list[int]()
    model.model.register_forward_hook(lambda *_: steps.append(1))
    pieces = generate(model, "abc", 500)
    for n in range(1, 5):
        assert len(next(pieces)) == 1
        assert len(steps) == n


def test_groups_come_one_by_one_and_tell_of_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAMS_ON_A_CPU", 2)
    drawn = list[int]()
    samples = generate_many(text_model(), 5, max_new_tokens=3, on_step=drawn.append)
    assert drawn == []
    told = []
    for _ in islice(samples, 5):
        told.append(list(drawn))
    assert told == [[2] * 3, [2] * 3, [2] * 6, [2] * 6, [2] * 6 + [1] * 3]


# the end


@pytest.mark.parametrize("stop", [["a"], ["b", "cd"], ["e\n", "hh", "fa"], ["nowhere"]])
def test_a_stop_string_ends_each_sample_where_it_is_met(stop: list[str]) -> None:
    model, settings = text_model(), {"max_new_tokens": 30, "seed": 4}
    whole = many(model, 7, "abc", **settings)
    places = [[text.index(s) for s in stop if s in text] for text in whole]
    expected = [text[: min(at, default=30)] for text, at in zip(whole, places, strict=True)]
    assert expected == whole or {len(text) for text in expected} != {30}
    assert many(model, 7, "abc", **settings, stop=stop) == expected
    pieces = list(generate(model, "abc", **settings, stop=stop))
    assert "".join(pieces) == expected[0]
    assert "" not in pieces


def test_no_step_is_made_after_the_last_sample_has_ended() -> None:
    model, steps = text_model(), list[int]()
    whole = many(model, 7, "abc", 200, seed=4)
    stopped = many(model, 7, "abc", 200, seed=4, stop=["a"], on_step=steps.append)
    assert len(steps) == max(map(len, stopped)) + 1 < 200
    assert [text.split("a")[0] for text in whole] == stopped
    model.model.register_forward_hook(lambda *_: steps.append(0))
    one(model, "abc", 200, seed=4, stop=["a"])
    assert steps.count(0) == len(stopped[0]) + 1


def test_the_prompt_is_no_part_of_a_stop_string() -> None:
    model, rule = text_model(), SamplingRule(0.0)
    text = one(model, "abc", 20, rule)
    assert one(model, "abc", 20, rule, stop=["c" + text[0]]).startswith(text[0])


def test_what_is_held_back_comes_in_the_end() -> None:
    model = text_model()
    text = one(model, "abc", 9)
    assert one(model, "abc", 9, stop=[text[-3:] + "never"]) == text


def test_no_characters_are_an_empty_text() -> None:
    assert one(text_model(), "abc", 0) == ""
    assert many(text_model(), 3, "abc", 0) == ["", "", ""]
    assert many(text_model(), 0) == []


def test_an_unknown_character_and_an_empty_stop_are_refused() -> None:
    with pytest.raises(UserError, match="'x' at position 1"):
        one(text_model(), "ax")
    with pytest.raises(UserError, match="'x' at position 1"):
        many(text_model(), 2, "ax")
    with pytest.raises(UserError, match="cannot be empty"):
        one(text_model(), stop=[""])
    with pytest.raises(UserError, match="cannot be empty"):
        many(text_model(), 2, stop=[""])


# the start


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


# a sample in training


@pytest.mark.parametrize("training", [True, False])
def test_a_sample_touches_neither_chance_nor_the_models_mode_nor_its_gradients(
    training: bool,
) -> None:
    given = text_model(dropout=0.5)
    gpt, tokenizer = given.model.train(training), given.tokenizer
    state = torch.get_rng_state()
    first, again, other = (sample_text(gpt, tokenizer, 30, seed) for seed in (5, 5, 6))
    assert torch.get_rng_state().equal(state)
    assert {module.training for module in gpt.modules()} == {training}
    assert first == again != other
    assert len(first) == 30
    assert all(parameter.grad is None for parameter in gpt.parameters())
    torch.manual_seed(99)  # neither has it an influence, nor has dropout
    assert sample_text(gpt.eval(), tokenizer, 30, 5) == first == one(given, "", 30, seed=5)


def test_a_model_can_be_trained_after_a_sample() -> None:
    gpt = loud(GPT(**SIZE)).train()
    sample_text(gpt, Tokenizer(LETTERS), 30, 5)
    gpt(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in gpt.parameters())
