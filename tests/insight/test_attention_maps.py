"""The maps are the weights that the fused attention uses, and cost a model nothing."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.insight.attention_maps import attention_maps
from nanogpt.models import GPT, Bigram, Rung, attention
from tests.models.oracles import DIVIDING, RAGGED, T, loud, loud_gpt

PARTS = [["attention"], ["attention", "feed_forward"], ["attention", "feed_forward", "residual"]]
MODELS: dict[str, Callable[[], GPT]] = {
    "gpt": lambda: loud_gpt(RAGGED),
    **{" ".join(p): lambda p=p: loud(Rung(**DIVIDING, parts=p)) for p in PARTS},
    "sinusoidal": lambda: loud(Rung(**DIVIDING, positions="sinusoidal")),
}
every_model = pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)


def float32(build: Callable[[], GPT]) -> GPT:
    return build().float().eval()


def sentence(size: int = T) -> Tensor:
    return torch.randint(RAGGED["vocab_size"], (size,), generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def flows(model: nn.Module, ids: Tensor, into: str) -> list[Tensor]:
    """What a plain forward pass sends into every module whose name ends so."""
    seen: list[Tensor] = []
    parts = [part for name, part in model.named_modules() if name.endswith(into)]
    hooks = [part.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for part in parts]
    model(ids[None])
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def error(model: GPT, ids: Tensor) -> float:
    """The largest difference of maps @ values from what the fused attention computed."""
    differences = []
    inputs, gathered = (flows(model, ids, into) for into in (".attn", ".attn.out_proj"))
    layers = zip(model.blocks, attention_maps(model, ids), inputs, gathered, strict=True)
    for block, maps, x, fused in layers:
        value = block.attn.qkv.weight.chunk(3)[2]
        heads = [
            weights @ (x[0] @ matrix.T)
            for weights, matrix in zip(maps, value.chunk(block.attn.n_head), strict=True)
        ]
        differences.append((torch.cat(heads, dim=-1) - fused[0]).abs().max().item())
    return max(differences)


@every_model
@pytest.mark.parametrize("size", [1, T])
def test_maps_times_values_are_what_the_fused_attention_computed(
    build: Callable[[], GPT], size: int
) -> None:
    assert error(float32(build), sentence(size)) < 1e-5


@every_model
def test_each_row_shares_itself_out_among_the_past(build: Callable[[], GPT]) -> None:
    model = float32(build)
    maps = torch.stack(attention_maps(model, sentence()))
    assert maps.shape == (2, 3, T, T)
    assert not maps.triu(1).any()
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 3, T))


def test_the_mean_looks_everywhere_alike() -> None:
    model = float32(lambda: loud(Rung(**DIVIDING, parts=["mean", "feed_forward"])))
    maps, ids = attention_maps(model, sentence()), sentence()
    assert len(maps) == DIVIDING["n_layer"]
    for weights, x, gathered in zip(
        maps, flows(model, ids, ".attn"), flows(model, ids, ".ln_2"), strict=True
    ):
        expected = [[1 / (t + 1) if s <= t else 0 for s in range(T)] for t in range(T)]
        torch.testing.assert_close(weights, torch.tensor([expected]))
        torch.testing.assert_close(weights @ x[0], gathered)


def test_a_bigram_has_no_maps() -> None:
    assert attention_maps(Bigram(17), sentence()) == []


# looking, and not looking


def hooks_of(model: nn.Module) -> list[Any]:
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [hook for part in model.modules() for kind in kinds for hook in getattr(part, kind)]


@every_model
def test_a_model_is_the_same_after_a_look(build: Callable[[], GPT]) -> None:
    model, ids = float32(build), sentence()[None]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = model(ids)
    attention_maps(model, sentence())
    assert hooks_of(model) == []
    assert torch.equal(model(ids), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_hooks_are_left_when_looking_fails() -> None:
    model = GPT(**RAGGED)
    with pytest.raises(ValueError, match="block_size"):
        attention_maps(model, sentence(RAGGED["block_size"] + 1))
    assert hooks_of(model) == []


def test_a_model_that_is_not_looked_at_never_holds_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("attention weights were made")

    model, ids = float32(lambda: loud_gpt(RAGGED)), sentence()
    for where in ("models.attention", "insight.attention_maps"):
        monkeypatch.setattr(f"nanogpt.{where}.attention_weights", refuse)
    model(ids[None])
    with pytest.raises(AssertionError, match="were made"):
        attention_maps(model, ids)


def test_a_forward_pass_knows_nothing_of_maps() -> None:
    for model in (GPT, Rung, Bigram):
        assert list(inspect.signature(model.forward).parameters) == ["self", "ids", "cache"]


# the check has eyes


def unscaled(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2) + mask).softmax(-1)


def unmasked(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return attention.attention_weights(q, k, torch.zeros_like(mask))


def exchanged(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return attention.attention_weights(k, q, mask)


@pytest.mark.parametrize("wrong", [unscaled, unmasked, exchanged])
def test_a_planted_fault_is_seen(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanogpt.insight.attention_maps.attention_weights", wrong)
    assert error(float32(MODELS["gpt"]), sentence()) > 1e-2
