"""Traced and recorded steps equal the step itself; a model that cannot be traced runs unchanged."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt import kernels
from nanogpt.generation import decoding, replay
from nanogpt.generation.decoding import decode, decode_step, prefill
from nanogpt.generation.quantization import cache_dtype, set_weights
from nanogpt.generation.replay import GraphedStep, should_trace, trace
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models.gpt import CausalSelfAttention
from nanogpt.models.kv_cache import Cache, LayerCache
from tests.models.oracles import RAGGED, random_gpt, random_models

BLOCK = 6
RULE = SamplingRule(0.9, 9, 0.9)
GPT = random_gpt({**RAGGED, "block_size": BLOCK})
MODELS = random_models(BLOCK)
TRACEABLE = [name for name in MODELS if name != "bigram"]


def prompt(batch: int) -> Tensor:
    return torch.randint(17, (batch, 2), generator=torch.Generator().manual_seed(1))


def u_stream(batch: int, device: str = "cpu") -> Iterator[Tensor]:
    return uniform_streams(5, batch, device=device)


def drawn(model: Any, batch: int) -> Tensor:
    return torch.stack(list(decode(model, prompt(batch), 30, RULE, u_stream(batch))), 1)


# torch.jit.trace


@pytest.fixture
def always_trace(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Trace short texts as well; return the number of models traced so far."""
    traced = list[Any]()

    def traced_model(model: Any, *rest: Any) -> Any:
        forward = trace(model, *rest)
        traced.extend([] if forward is model else [forward])
        return forward

    monkeypatch.setattr(replay, "MIN_TRACED_STEPS", 1)
    monkeypatch.setattr(decoding, "trace", traced_model)
    return lambda: len(traced)


@pytest.mark.parametrize("name", TRACEABLE)
@pytest.mark.parametrize("batch", [1, 7])
def test_traced_model_draws_the_same_ids(
    name: str, batch: int, request: pytest.FixtureRequest
) -> None:
    expected = drawn(MODELS[name], batch)
    n_traced = request.getfixturevalue("always_trace")
    assert drawn(MODELS[name], batch).equal(expected)
    assert n_traced() == 1


@torch.inference_mode()
@pytest.mark.parametrize("name", TRACEABLE)
@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_traced_logits_are_bit_exact(name: str, weights: Any) -> None:
    model = set_weights(kernels.install(deepcopy(MODELS[name]).float()), weights, "cpu")
    caches = [model.new_cache(cache_dtype(model)) for _ in range(2)]
    traced, ids = trace(model, caches[0], 3), prompt(3)
    assert traced is not model
    assert caches[0].length == 0
    for cache in caches:
        model(ids, cache)
    for length in range(3, BLOCK + 1):
        logits = traced(ids[:, -1:], caches[0])
        assert logits.equal(model(ids[:, -1:], caches[1]))
        assert [cache.length for cache in caches] == [length, length]
        ids = logits[:, -1].argmax(-1, keepdim=True)


def test_only_long_texts_in_small_batches_on_a_cpu_are_traced() -> None:
    assert should_trace(prompt(1), 1000)
    assert should_trace(prompt(16), 1000)
    assert not should_trace(prompt(1), 999)
    assert not should_trace(prompt(17), 1000)
    assert not should_trace(prompt(1).to("meta"), 1000)


def branching(self: CausalSelfAttention, x: Tensor, cache: LayerCache | None = None) -> Tensor:
    """Attend, with a branch on the length of the cache that a trace does not contain."""
    y = CausalSelfAttention.original(self, x, cache)  # type: ignore[attr-defined]
    return y * 2 if cache is not None and cache.length > 4 else y


@torch.inference_mode()
def test_a_model_that_branches_on_the_length_is_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalSelfAttention, "original", CausalSelfAttention.forward, raising=False)
    monkeypatch.setattr(CausalSelfAttention, "forward", branching)
    assert trace(GPT, GPT.new_cache(), 1) is GPT


@torch.inference_mode()
def test_a_failed_trace_leaves_the_model_and_an_empty_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("cannot be traced")

    monkeypatch.setattr(torch.jit, "trace", fail)
    cache = GPT.new_cache()
    assert trace(GPT, cache, 1) is GPT
    assert cache.length == 0
    assert trace(MODELS["bigram"], MODELS["bigram"].new_cache(), 1) is MODELS["bigram"]


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_models_with_a_short_block_are_decoded_without_a_trace(
    block_size: int, request: pytest.FixtureRequest
) -> None:
    model = random_models(block_size)["gpt"]
    expected = drawn(model, 2)
    request.getfixturevalue("always_trace")
    assert drawn(model, 2).equal(expected)


# CUDA graphs


class Recorder:
    """Record without a GPU. As on a GPU, nothing is computed while recording."""

    def __init__(self, cache: Cache) -> None:
        self.cache, self.recorded, self.replayed = cache, list[int](), list[int]()

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        length = self.cache.length
        result = function().fill_(-1)
        self.recorded.append(length)

        def replay() -> Tensor:
            self.replayed.append(length)
            self.cache.set_length(length)
            return result.copy_(function())

        return replay


@torch.inference_mode()
def graphed(batch: int = 3, steps: int = 30) -> tuple[Tensor, Recorder]:
    """Decode with replays, as ``decode`` does on a GPU."""
    cache = GPT.new_cache()
    recorder = Recorder(cache)
    step = GraphedStep(partial(decode_step, GPT, cache, RULE), cache, recorder)
    window, numbers = prompt(batch), u_stream(batch)
    ids = [prefill(GPT, cache, RULE, window, next(numbers))]
    for _ in range(steps - 1):
        window = torch.cat([window, ids[-1][:, None]], dim=1)
        if window.shape[1] > BLOCK:
            window = window[:, -BLOCK // 2 :]
            ids.append(prefill(GPT, cache, RULE, window, next(numbers)))
        else:
            ids.append(step(window[:, -1:], next(numbers)))
    return torch.stack(ids, 1), recorder


def test_replays_draw_the_same_ids() -> None:
    assert graphed()[0].equal(drawn(GPT, 3))


def test_a_length_is_recorded_the_second_time_and_then_replayed() -> None:
    _, recorder = graphed(steps=5 + 4 * 3)  # lengths 0 2 3 4 5, then 0 3 4 5 after each refill
    assert recorder.recorded == [3, 4, 5]
    assert recorder.replayed == [3, 4, 5] * 3


@torch.inference_mode()
def test_failed_recording_leaves_the_steps_without_graphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = list[int]()

    def fail(self: Recorder, function: Callable[[], Tensor]) -> Any:
        recorded.append(self.cache.length)
        function().fill_(-1)  # as far as it came
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Recorder, "__call__", fail)
    assert graphed()[0].equal(drawn(GPT, 3))
    assert recorded == [3]
    assert capsys.readouterr().err == (
        "notice: CUDA graphs failed, sampling continues without them: RuntimeError: operation not "
        "permitted when stream is capturing\n"
    )


def test_graphs_are_not_used_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(decoding, "GraphedStep")
    drawn(GPT, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_draw_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, start = random_gpt({**RAGGED, "block_size": BLOCK}).cuda(), prompt(3).cuda()
    with_graphs = list(decode(gpt, start, 60, RULE, u_stream(3, "cuda")))
    monkeypatch.setattr(decoding, "GraphedStep", lambda step, *_: step)
    without = list(decode(gpt, start, 60, RULE, u_stream(3, "cuda")))
    assert torch.stack(with_graphs).equal(torch.stack(without))
