"""A recorded model says what the model says, and one that cannot be recorded runs as it is."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.generation import traced
from nanogpt.generation.decoding import decode
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.generation.replay import TracedModel
from nanogpt.generation.quantization import cache_dtype, set_weights
from nanogpt.models import GPT, Bigram
from nanogpt.models.kv_cache import Cache, LayerCache
from nanogpt.models.gpt import CausalSelfAttention
from tests.models.oracles import loud_models

BLOCK = 6
MODELS = {name: model for name, model in loud_models(BLOCK).items() if name != "bigram"}


@pytest.fixture(autouse=True)
def always_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traced, "WORTH_IT_FROM", 1)


def prompts(batch: int) -> Tensor:
    return torch.randint(17, (batch, 2), generator=torch.Generator().manual_seed(1))


def drawn(model: Any, batch: int, cached: bool = True) -> Tensor:
    steps = decode(model, prompts(batch), 25, SamplingRule(), uniform_streams(5, batch), cached=cached)
    return torch.stack(list(steps), 1)


def recorded(model: GPT, batch: int = 1) -> tuple[TracedModel, Cache]:
    cache = model.new_cache(cache_dtype(model))
    return TracedModel(model, cache, batch), cache


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_what_is_drawn_is_the_same(name: str, batch: int) -> None:
    assert drawn(MODELS[name], batch).equal(drawn(MODELS[name], batch, cached=False))


@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_logits_are_the_same_to_the_last_bit(name: str, weights: Any) -> None:
    model = set_weights(deepcopy(MODELS[name]).float(), weights, "cpu")
    fast, cache = recorded(model, 3)
    assert fast.traced is not None
    slow_cache, ids = model.new_cache(cache_dtype(model)), prompts(3)
    for _ in range(BLOCK - 1):
        logits = fast(ids, cache)
        assert logits.equal(model(ids, slow_cache))
        assert cache.length == slow_cache.length
        ids = logits[:, -1].argmax(-1, keepdim=True)


def test_it_is_taken_where_it_is_repaid(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, one = MODELS["gpt"], prompts(1)
    assert traced.worth_tracing(gpt, one, 1)
    assert not traced.worth_tracing(gpt, prompts(17), 1)
    assert not traced.worth_tracing(Bigram(17, BLOCK), one, 1)
    assert not traced.worth_tracing(gpt, one.to("meta"), 1)
    monkeypatch.setattr(traced, "WORTH_IT_FROM", 1000)
    assert not traced.worth_tracing(gpt, one, 999)
    assert traced.worth_tracing(gpt, one, 1000)


def branching(self: CausalSelfAttention, x: Tensor, cache: LayerCache | None = None) -> Tensor:
    """Attend, but twice as much once the past is long: a branch that a recording has not."""
    kept = CausalSelfAttention.kept(self, x, cache)  # type: ignore[attr-defined]
    return kept * 2 if cache is not None and cache.length > 4 else kept


@torch.inference_mode()
def test_a_model_that_branches_on_the_length_is_not_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CausalSelfAttention, "kept", CausalSelfAttention.forward, raising=False)
    monkeypatch.setattr(CausalSelfAttention, "forward", branching)
    assert recorded(MODELS["gpt"])[0].traced is None


@torch.inference_mode()
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_blocks_too_short_to_record_are_decoded_all_the_same(block_size: int) -> None:
    model = loud_models(block_size)["gpt"]
    assert drawn(model, 2).equal(drawn(model, 2, cached=False))


@torch.inference_mode()
def test_a_recording_that_fails_leaves_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no recording of this")

    monkeypatch.setattr(torch.jit, "trace", fail)
    model = MODELS["gpt"]
    fast, cache = recorded(model)
    assert cache.length == 0
    assert fast(prompts(1), cache).equal(model(prompts(1)))
