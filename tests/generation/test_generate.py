"""The Python API: the same seed gives the same text, for any batch size."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.generation import generate as module
from nanogpt.generation.decoding import decode
from nanogpt.generation.generate import (
    GenerationOptions,
    TextModel,
    as_text_model,
    generate,
    generate_many,
    sample_text,
    start_ids,
)
from nanogpt.generation.sampling import uniform_streams
from nanogpt.text.tokenizer import Tokenizer
from tests.models.oracles import DIVIDING, random_gpt

SIZE: dict[str, Any] = {**DIVIDING, "block_size": 6, "vocab_size": 9}
LETTERS = "\nabcdefgh"


def text_model(dropout: float = 0.0) -> TextModel:
    return TextModel(random_gpt(SIZE, dropout).eval(), Tokenizer(LETTERS))


def one(model: TextModel, *args: Any, **settings: Any) -> str:
    return "".join(generate(model, *args, **settings))


def many(model: TextModel, *args: Any, **settings: Any) -> list[str]:
    return list(generate_many(model, *args, **settings))


# same seed, same text


@pytest.mark.parametrize("group", [1, 3, 64])
@pytest.mark.parametrize("rule", [(0.7, 4, 0.9), (0.0,)], ids=str)
def test_a_sample_does_not_depend_on_the_batch(
    group: int, rule: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = text_model(), GenerationOptions(*rule, max_new_tokens=20, seed=3)
    expected = many(model, 7, "abc", options)
    monkeypatch.setattr(module, "CPU_BATCH_SIZE", group)
    for n in (4, 7):
        assert many(model, n, "abc", options) == expected[:n]
    assert one(model, "abc", options) == expected[0]
    assert all(len(sample) == 20 for sample in expected)
    assert len(set(expected)) == (1 if options.greedy else 7)


def test_different_seeds_give_different_texts() -> None:
    texts = {
        one(text_model(), "abc", max_new_tokens=20, seed=seed) for seed in (0, 1, 2, 2**63 - 1)
    }
    assert len(texts) == 4


@pytest.mark.parametrize("context", ["refill", "exact"])
def test_text_is_that_of_decode(context: Any) -> None:
    model = text_model()
    options = GenerationOptions(0.8, 4, max_new_tokens=12, seed=5, context=context)
    prompt = model.tokenizer.encode("abcab").long()[None]
    ids = decode(model.model, prompt, 12, options, uniform_streams(5, 1), context)
    expected = model.tokenizer.decode(torch.cat(list(ids)))
    assert one(model, "abcab", options) == expected
    assert many(model, 1, "abcab", options) == [expected]
    settings = {"temperature": 0.8, "top_k": 4, "max_new_tokens": 12, "seed": 5}
    assert one(model, "abcab", context=context, **settings) == expected
    assert one(model, "abcab", replace(options, seed=6, top_k=2), seed=5, top_k=4) == expected


def test_contexts_differ_once_the_window_is_full() -> None:
    refill = one(text_model(), "a", max_new_tokens=40)
    exact = one(text_model(), "a", max_new_tokens=40, context="exact")
    assert refill[:6] == exact[:6]
    assert refill != exact


# streaming


def test_characters_are_yielded_as_soon_as_they_are_drawn() -> None:
    model, steps = text_model(), list[int]()
    model.model.register_forward_hook(lambda *_: steps.append(1))
    pieces = generate(model, "abc")
    for n in range(1, 5):
        assert len(next(pieces)) == 1
        assert len(steps) == n


def test_batches_are_yielded_one_by_one_and_report_their_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CPU_BATCH_SIZE", 2)
    drawn = list[int]()
    samples = generate_many(text_model(), 5, max_new_tokens=3, on_step=drawn.append)
    assert drawn == []
    reported = []
    for _ in islice(samples, 5):
        reported.append(list(drawn))
    assert reported == [[2] * 3, [2] * 3, [2] * 6, [2] * 6, [2] * 6 + [1] * 3]


# stop strings


@pytest.mark.parametrize("stop", [["a"], ["b", "cd"], ["e\n", "hh", "fa"], ["nowhere"]])
def test_each_sample_ends_before_its_first_stop_string(stop: list[str]) -> None:
    model, settings = text_model(), {"max_new_tokens": 30, "seed": 4}
    whole = many(model, 7, "abc", **settings)
    starts = [[text.index(s) for s in stop if s in text] for text in whole]
    expected = [text[: min(at, default=30)] for text, at in zip(whole, starts, strict=True)]
    assert expected == whole or {len(text) for text in expected} != {30}
    assert many(model, 7, "abc", **settings, stop=stop) == expected
    pieces = list(generate(model, "abc", **settings, stop=stop))
    assert "".join(pieces) == expected[0]
    assert "" not in pieces


def test_decoding_ends_with_the_last_sample() -> None:
    model, steps = text_model(), list[int]()
    options = GenerationOptions(max_new_tokens=200, seed=4)
    whole = many(model, 7, "abc", options)
    stopped = many(model, 7, "abc", options, steps.append, stop=["a"])
    assert len(steps) == max(map(len, stopped)) + 1 < 200
    assert [text.split("a")[0] for text in whole] == stopped
    model.model.register_forward_hook(lambda *_: steps.append(0))
    one(model, "abc", options, stop=["a"])
    assert steps.count(0) == len(stopped[0]) + 1


def test_stop_strings_do_not_include_the_prompt() -> None:
    model, options = text_model(), GenerationOptions(0.0, max_new_tokens=20)
    text = one(model, "abc", options)
    assert one(model, "abc", options, stop=["c" + text[0]]).startswith(text[0])


def test_held_text_is_yielded_at_the_end() -> None:
    model = text_model()
    text = one(model, "abc", max_new_tokens=9)
    assert one(model, "abc", max_new_tokens=9, stop=[text[-3:] + "never"]) == text


def test_no_samples() -> None:
    assert many(text_model(), 0) == []


# refused options


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_new_tokens", 0), ("max_new_tokens", 2**63), ("seed", -1), ("seed", 2**63),
     ("context", "full"), ("temperature", -1.0), ("top_k", 0), ("top_p", 0.0)],
)  # fmt: skip
def test_option_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"{name} must be") as error:
        GenerationOptions(**{name: value})
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"{name} must be"):
        one(text_model(), **{name: value})


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="temprature"):
        one(text_model(), temprature=0.5)


def test_unknown_character_and_empty_stop_string_are_refused() -> None:
    with pytest.raises(UserError, match="'x' at position 1"):
        one(text_model(), "ax")
    with pytest.raises(UserError, match="'x' at position 1"):
        many(text_model(), 2, "ax")
    with pytest.raises(UserError, match="cannot be empty"):
        one(text_model(), stop=[""])
    with pytest.raises(UserError, match="cannot be empty"):
        many(text_model(), 2, stop=[""])


# prompts


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


# other models


class Wrapper(torch.nn.Module):
    """Like a ``LanguageModel``: not a ``TextModel``, but it provides one."""

    def __init__(self, wrapped: TextModel) -> None:
        super().__init__()
        self.net, self.tokenizer = wrapped.model, wrapped.tokenizer

    def text_model(self) -> TextModel:
        return TextModel(self.net, self.tokenizer)


def test_object_that_provides_a_text_model() -> None:
    expected, wrapper = one(text_model(), "abc"), Wrapper(text_model())
    assert as_text_model(wrapper).model is wrapper.net
    assert "".join(generate(wrapper, "abc")) == expected
    assert next(generate_many(wrapper, 2, "abc")) == expected


@pytest.mark.parametrize("wrong", [random_gpt(SIZE), "best.ckpt", None], ids=["gpt", "str", "None"])
def test_model_without_a_tokenizer_is_refused(wrong: Any) -> None:
    for samples in (generate(wrong), generate_many(wrong, 2)):
        with pytest.raises(UserError, match=f"a {type(wrong).__name__} has no tokenizer"):
            next(samples)


def test_dropout_has_no_effect_and_each_module_keeps_its_mode() -> None:
    expected, model = one(text_model()), text_model(dropout=0.5)
    model.model.train().blocks[0].eval()
    modes = [module.training for module in model.model.modules()]
    assert one(model) == many(model, 2)[0] == expected
    assert [module.training for module in model.model.modules()] == modes
    next(pieces := generate(model))
    assert not any(module.training for module in model.model.modules())
    pieces.close()  # type: ignore[attr-defined]
    assert [module.training for module in model.model.modules()] == modes


def test_nan_is_refused() -> None:
    model = text_model()
    with torch.no_grad():
        model.model.lm_head.bias[2] = float("nan")
    for samples in (generate(model), generate_many(model, 2), generate_many(model, 2, stop=["a"])):
        with pytest.raises(UserError, match="the model returned NaN: its training diverged"):
            next(samples)


# samples during training


@pytest.mark.parametrize("training", [True, False])
def test_sample_text_does_not_change_random_state_mode_or_gradients(
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
    torch.manual_seed(99)  # neither the random state nor dropout has an influence
    assert (
        sample_text(gpt.eval(), tokenizer, 30, 5) == first == one(given, max_new_tokens=30, seed=5)
    )


def test_model_can_be_trained_after_sample_text() -> None:
    gpt = random_gpt(SIZE).train()
    sample_text(gpt, Tokenizer(LETTERS), 30, 5)
    gpt(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(parameter.grad is not None for parameter in gpt.parameters())
