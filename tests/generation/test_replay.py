"""A step that is recorded and replayed draws what the step itself draws."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.generation import decoding
from nanogpt.generation.decoding import decode, next_ids
from nanogpt.generation.replay import GraphedStep
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models.kv_cache import Cache
from tests.models.oracles import RAGGED, loud_gpt

BLOCK = 6
RULE = SamplingRule(0.9, 9, 0.9)
GPT = loud_gpt({**RAGGED, "block_size": BLOCK})


class Recorder:
    """Records without a GPU: what is drawn while recording is nothing, as on one."""

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


def graphed(batch: int = 3, steps: int = 30) -> tuple[list[Tensor], Recorder]:
    """Decode by replays, as ``decode`` does it on a GPU."""
    cache = GPT.new_cache()
    recorder = Recorder(cache)
    step = GraphedStep(partial(next_ids, GPT, RULE, cache), cache, recorder)
    window, numbers, drawn = prompt(batch), uniform_streams(5, batch), list[Tensor]()
    for _ in range(steps):
        if window.shape[1] > BLOCK:
            window = window[:, -BLOCK // 2 :]
            cache.set_length(0)
        drawn.append(step(window[:, cache.length :], next(numbers)))
        window = torch.cat([window, drawn[-1][:, None]], dim=1)
    return drawn, recorder


def prompt(batch: int) -> Tensor:
    return torch.randint(17, (batch, 2), generator=torch.Generator().manual_seed(1))


def test_what_is_replayed_is_what_would_have_been_drawn() -> None:
    ours = torch.stack(graphed()[0])
    plain = torch.stack(list(decode(GPT, prompt(3), 30, RULE, uniform_streams(5, 3), cached=False)))
    assert ours.equal(plain)


def test_a_length_is_recorded_when_it_comes_again_and_replayed_from_then_on() -> None:
    _, recorder = graphed(steps=5 + 4 * 3)  # lengths 0 2 3 4 5, and 0 3 4 5 after each refill
    assert recorder.recorded == [3, 4, 5]
    assert recorder.replayed == [3, 4, 5] * 3


def test_on_a_gpu_and_only_there_decode_takes_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(decoding, "GraphedStep", lambda *parts: made.append(parts) or parts[0])
    monkeypatch.setattr(decoding, "CUDARecorder", lambda: "recorder")
    list(decode(GPT, prompt(1), 3, RULE, uniform_streams(5, 1)))
    assert not made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_of_a_gpu_draw_what_its_kernels_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, start = loud_gpt({**RAGGED, "block_size": BLOCK}).cuda(), prompt(3).cuda()
    ours = list(decode(gpt, start, 60, RULE, uniform_streams(5, 3, device="cuda")))
    monkeypatch.setattr(decoding, "GraphedStep", lambda step, *_: step)
    plain = list(decode(gpt, start, 60, RULE, uniform_streams(5, 3, device="cuda")))
    assert torch.stack(ours).equal(torch.stack(plain))
