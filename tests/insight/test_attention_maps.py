"""Attention maps equal the weights that the model's attention applies, and leave no trace."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt import attention_maps, kernels
from nanogpt.errors import UserError
from nanogpt.generation.generate import TextModel
from nanogpt.generation.quantization import set_weights
from nanogpt.insight.attention_maps import record_attention
from nanogpt.models import Bigram, BigramConfig, build_model
from nanogpt.models.gpt import Attention
from nanogpt.text.tokenizer import Tokenizer
from tests.models.oracles import DIVIDING, RAGGED, T, random_gpt, randomize

PARTS = [["attention"], ["attention", "feed_forward"], ["attention", "feed_forward", "residual"]]
V = RAGGED["vocab_size"]
LETTERS = "".join(chr(ord("a") + i) for i in range(V))


def ablated(**settings: Any) -> nn.Module:
    return randomize(build_model("ablated_gpt", **DIVIDING, **settings))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt": lambda: random_gpt(RAGGED),
    **{" ".join(p): lambda p=p: ablated(parts=p) for p in PARTS},
    "sinusoidal": lambda: ablated(positions="sinusoidal"),
    "modern": lambda: randomize(build_model("modern", **DIVIDING)),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
with_and_without_kernels = pytest.mark.parametrize("installed", [False, True])


def float32(build: Callable[[], nn.Module], installed: bool = True) -> nn.Module:
    model = build().float().eval()
    return kernels.install(model) if installed else model


def random_ids(size: int = T) -> Tensor:
    return torch.randint(V, (size,), generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def inputs_of(model: nn.Module, ids: Tensor, suffix: str) -> list[Tensor]:
    """The inputs of all modules whose names end with a suffix, in a forward pass."""
    inputs: list[Tensor] = []
    modules = [module for name, module in model.named_modules() if name.endswith(suffix)]
    hooks = [m.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for m in modules]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    return inputs


@torch.no_grad()
def error(model: nn.Module, ids: Tensor) -> float:
    """The largest difference between maps @ values and the output of the model's attention."""
    differences = []
    inputs, outputs = (inputs_of(model, ids, suffix) for suffix in (".attn", ".attn.out_proj"))
    layers = zip(model.blocks, record_attention(model, ids), inputs, outputs, strict=True)
    for block, maps, x, output in layers:
        value = block.attn.qkv.weight.chunk(3)[2]
        heads = [
            weights @ (x[0] @ matrix.T)
            for weights, matrix in zip(maps, value.chunk(block.attn.n_head), strict=True)
        ]
        differences.append((torch.cat(heads, dim=-1) - output[0]).abs().max().item())
    return max(differences)


@every_model
@with_and_without_kernels
@pytest.mark.parametrize("size", [1, T])
def test_maps_times_values_equal_the_output_of_attention(
    build: Callable[[], nn.Module], installed: bool, size: int
) -> None:
    assert error(float32(build, installed), random_ids(size)) < 1e-5


@every_model
def test_rows_are_causal_and_sum_to_one(build: Callable[[], nn.Module]) -> None:
    maps = torch.stack(record_attention(float32(build), random_ids()))
    assert maps.shape == (2, 3, T, T)
    assert not maps.triu(1).any()
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, T))


def test_mean_has_uniform_weights() -> None:
    model = float32(lambda: ablated(parts=["mean", "feed_forward"]))
    maps, ids = record_attention(model, random_ids()), random_ids()
    assert len(maps) == DIVIDING["n_layer"]
    for weights, x, output in zip(
        maps, inputs_of(model, ids, ".attn"), inputs_of(model, ids, ".ln_2"), strict=True
    ):
        expected = [[1 / (t + 1) if s <= t else 0 for s in range(T)] for t in range(T)]
        torch.testing.assert_close(weights, torch.tensor([expected]))
        torch.testing.assert_close(weights @ x[0], output)


def test_bigram_has_no_maps() -> None:
    assert record_attention(Bigram(V, BigramConfig()), random_ids()) == []


# of a text


def text_model(build: Callable[[], nn.Module] = MODELS["gpt"]) -> TextModel:
    return TextModel(float32(build), Tokenizer(LETTERS))  # type: ignore[arg-type]


def test_maps_of_a_text() -> None:
    model = text_model()
    maps = attention_maps(model, LETTERS[:T])
    assert [layer.shape for layer in maps] == [(RAGGED["n_head"], T, T)] * RAGGED["n_layer"]
    assert torch.equal(
        torch.stack(maps), torch.stack(record_attention(model.model, torch.arange(T)))
    )
    assert attention_maps(model, "a")[0].flatten().tolist() == [1] * RAGGED["n_head"]


def test_object_that_provides_a_text_model() -> None:
    model = text_model()
    (provider := nn.Module()).text_model = lambda: model  # type: ignore[assignment]
    assert torch.equal(attention_maps(provider, "ab")[0], attention_maps(model, "ab")[0])


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_maps_are_float32_for_any_weights(weights: Any) -> None:
    model = TextModel(set_weights(text_model().model, weights, "cpu"), Tokenizer(LETTERS))
    for layer in attention_maps(model, LETTERS[:T]):
        assert layer.dtype == torch.float32
        torch.testing.assert_close(layer.sum(-1), torch.ones(3, T), atol=0.02, rtol=0)


def test_dropout_has_no_effect_and_the_mode_is_kept() -> None:
    model = text_model(lambda: random_gpt(RAGGED, 0.5))
    expected = torch.stack(attention_maps(model, LETTERS[:T]))
    model.model.train()
    assert torch.equal(torch.stack(attention_maps(model, LETTERS[:T])), expected)
    assert all(module.training for module in model.model.modules())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the text has 0 characters, but the model reads 1 to"),
        ("a" * (RAGGED["block_size"] + 1), f"reads 1 to {RAGGED['block_size']} \\(its block_size"),
        ("ab?", "the character '\\?' at position 2"),
    ],
)
def test_text_that_the_model_cannot_read_is_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as error:
        attention_maps(text_model(), text)
    assert "\n" not in str(error.value)


def test_model_without_attention_or_tokenizer_is_refused() -> None:
    bigram = TextModel(Bigram(V, BigramConfig()), Tokenizer(LETTERS))
    with pytest.raises(UserError, match="a Bigram has no attention"):
        attention_maps(bigram, "ab")
    with pytest.raises(UserError, match="a GPT has no tokenizer"):
        attention_maps(random_gpt(RAGGED), "ab")  # type: ignore[arg-type]


# side effects


def hooks_of(model: nn.Module) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [hook for part in model.modules() for kind in kinds for hook in getattr(part, kind)]


@every_model
def test_model_is_unchanged(build: Callable[[], nn.Module]) -> None:
    model, ids = float32(build), random_ids()[None]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(ids)
    record_attention(model, random_ids())
    assert hooks_of(model) == []
    assert torch.equal(model(ids), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_hooks_are_removed_after_an_error() -> None:
    model = random_gpt(RAGGED)
    with pytest.raises(ValueError, match="block_size"):
        record_attention(model, random_ids(RAGGED["block_size"] + 1))
    assert hooks_of(model) == []


def test_fused_attention_never_stores_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("attention weights were computed")

    model, ids = float32(MODELS["gpt"]), random_ids()
    monkeypatch.setattr(Attention, "weights", refuse)
    monkeypatch.setattr("nanogpt.kernels.attention.attention_weights", refuse)
    model(ids[None])
    with pytest.raises(AssertionError, match="were computed"):
        record_attention(model, ids)


@pytest.mark.parametrize("name", ["gpt", "modern", "ablated_gpt", "bigram"])
def test_forward_has_no_argument_for_maps(name: str) -> None:
    forward = type(build_model(name, V)).forward
    assert list(inspect.signature(forward).parameters) == ["self", "ids", "cache"]


# planted faults


def unscaled(module: Attention, q: Tensor, k: Tensor) -> Tensor:
    return PLAIN(module, q * q.shape[-1] ** 0.5, k)


def unmasked(module: Attention, q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)


def exchanged(module: Attention, q: Tensor, k: Tensor) -> Tensor:
    return PLAIN(module, k, q)


PLAIN = Attention.weights


@pytest.mark.parametrize("wrong", [unscaled, unmasked, exchanged])
def test_planted_fault_is_detected(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attention, "weights", wrong)
    assert error(float32(MODELS["gpt"]), random_ids()) > 1e-2
