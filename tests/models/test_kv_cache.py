"""A text read in pieces with a cache gives the same logits as the whole text at once."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partialmethod
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt import kernels
from nanogpt.models import GPT
from nanogpt.models.ablated_gpt import CausalMean, mean_by_matrix
from nanogpt.models.gpt import Attention
from nanogpt.models.kv_cache import Cache, LayerCache, ShiftCache
from tests.models.oracles import random_models

BLOCK = 6
MODELS = random_models(BLOCK)
LAYERED = [name for name in MODELS if name != "bigram"]


def random_ids(batch: int, length: int = BLOCK, seed: int = 2) -> Tensor:
    return torch.randint(17, (batch, length), generator=torch.Generator().manual_seed(seed))


def all_cuts(length: int) -> Iterator[list[int]]:
    """Yield every way to cut a text into pieces, as lists of lengths."""
    if length == 0:
        yield []
    for first in range(1, length + 1):
        yield from ([first, *rest] for rest in all_cuts(length - first))


def read(model: Any, ids: Tensor, lengths: list[int], cache: Cache) -> Tensor:
    return torch.cat([model(piece, cache) for piece in ids.split(lengths, 1)], 1)


INSTALLED = {f"{name}, kernels": kernels.install(deepcopy(MODELS[name])) for name in LAYERED}
ALL_MODELS = MODELS | INSTALLED


def cut_error(model: Any, batch: int) -> float:
    """Return the largest difference in a full window's logits over all cuts."""
    ids = random_ids(batch)
    whole, cuts = model(ids), all_cuts(BLOCK)
    return max(
        (read(model, ids, cut, model.new_cache()) - whole).abs().max().item() for cut in cuts
    )


def clear_error(model: Any) -> float:
    """Return the effect of an earlier, longer text on the logits after clearing the cache."""
    cache, ids, cut = model.new_cache(), random_ids(7, BLOCK - 1), [1, 2, 2]
    read(model, random_ids(7, seed=3), [4, 2], cache)
    cache.set_length(0)
    return (read(model, ids, cut, cache) - model(ids)).abs().max().item()


@pytest.mark.parametrize("name", ALL_MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_logits_do_not_depend_on_the_cut(name: str, batch: int) -> None:
    assert cut_error(ALL_MODELS[name], batch) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_logits_do_not_depend_on_the_cut_in_float32(name: str) -> None:
    model = deepcopy(MODELS[name]).float()
    largest = model(random_ids(7)).abs().max().item()  # 5, but 189 without norms
    assert cut_error(model, 7) < 1e-5 * largest


@pytest.mark.parametrize("name", MODELS)
def test_clearing_removes_the_earlier_text(name: str) -> None:
    assert clear_error(MODELS[name]) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_a_position_in_a_piece_does_not_see_the_future(name: str) -> None:
    model, ids = MODELS[name], random_ids(7)
    for place in range(3, BLOCK):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % 17
        ours, theirs = (read(model, text, [2, 4], model.new_cache()) for text in (ids, changed))
        assert ours[:, :place].equal(theirs[:, :place])
        assert not ours[:, place].allclose(theirs[:, place])


@pytest.mark.parametrize("name", MODELS)
def test_the_length_is_the_number_of_positions(name: str) -> None:
    cache = MODELS[name].new_cache()
    for expected in (2, 3, 6):
        MODELS[name](random_ids(1, expected - cache.length), cache)
        assert cache.length == expected
    cache.set_length(0)
    assert cache.length == 0


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("before", [0, 1, BLOCK])
def test_exceeding_block_size_is_refused_and_changes_nothing(name: str, before: int) -> None:
    model, ids = MODELS[name], random_ids(1)
    cache = model.new_cache()
    if before:
        model(ids[:, :before], cache)
    with pytest.raises(ValueError, match=r"7 characters exceed block_size 6"):
        model(random_ids(1, BLOCK + 1 - before), cache)
    assert cache.length == before
    if before < BLOCK:
        torch.testing.assert_close(model(ids[:, before:], cache), model(ids)[:, before:])


def test_the_buffers_are_allocated_once() -> None:
    cache, places = LayerCache(4), set()
    for length in (1, 3):
        kv = torch.randn(2, 1, 1, length, 5)
        keys, values = cache.append(*kv)
        assert keys[:, :, -length:].equal(kv[0])
        assert values[:, :, -length:].equal(kv[1])
        places |= {(keys.data_ptr(), values.data_ptr())}
    assert keys.shape == values.shape == (1, 1, 4, 5)
    cache.length = 0
    again = cache.append(*kv)
    assert len(places | {(again[0].data_ptr(), again[1].data_ptr())}) == 1


def test_a_bf16_cache_changes_the_logits_by_its_rounding() -> None:
    model = kernels.install(deepcopy(MODELS["ragged"]).float())
    ids, cache = random_ids(7), model.new_cache(torch.bfloat16)
    difference = read(model, ids, [3, 1, 1, 1], cache) - model(ids)
    assert cache.layers[0].buffer.dtype == torch.bfloat16
    assert 0 < difference.std() / model(ids).std() < 2**-6


@pytest.mark.parametrize("name", ["ragged", "modern", "token shift"])
def test_a_cache_belongs_to_one_batch(name: str) -> None:
    model = MODELS[name]
    model(random_ids(7, 2), cache := model.new_cache())
    with pytest.raises(AssertionError, match="one batch"):
        model(random_ids(1, 2), cache)


# planted faults


def weights(self: Attention, q: Tensor, k: Tensor, last: int = 0) -> Tensor:
    """Let the query at position t of the whole text see the positions up to t + last."""
    T, S = q.shape[2], k.shape[2]
    seen = torch.ones(T, S, dtype=torch.bool).tril(S - T + (last if S > T else 0))
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def append(
    self: LayerCache, k: Tensor, v: Tensor, off: int = 0, whole: bool = False
) -> tuple[Tensor, ...]:
    """Write keys ``off`` positions too far, or return the whole buffer."""
    start, self.length = self.length, self.length + k.shape[2]
    if self.buffer is None:
        self.buffer = k.new_zeros(2, *k.shape[:2], self.size + off, k.shape[3])
    self.buffer[0, :, :, start + off : self.length + off] = k
    self.buffer[1, :, :, start : self.length] = v
    return self.buffer[:, :, :, : self.size if whole else self.length].unbind()


def append_shift(self: ShiftCache, x: Tensor, off: int = 0) -> Tensor:
    """Return inputs that start ``off`` positions too far."""
    start, self.length = self.length, self.length + x.shape[1]
    if self.buffer is None:
        self.buffer = x.new_zeros(len(x), 2 + self.size + off, x.shape[2])
    self.buffer[:, 2 + start : 2 + self.length] = x
    return self.buffer[:, start + off : start + off + 2 + x.shape[1]]


def forward(self: GPT, ids: Tensor, cache: Cache | None = None, resume: bool = True) -> Tensor:
    start = cache.length if cache and resume else 0
    positions = torch.arange(start, start + ids.shape[1])
    x = self.token_embedding(ids) + self.position_embedding(positions)
    for layer, block in enumerate(self.blocks):
        x = block(x, cache.layers[layer] if cache else None)
    return self.lm_head(self.ln_f(x))


def mean(
    self: CausalMean, x: Tensor, cache: LayerCache | None = None, look_back: bool = True
) -> Tensor:
    past = cache.append(x[:, None], x[:, None])[0][:, 0] if cache else x
    return mean_by_matrix(past if look_back else x)[:, -x.shape[1] :]


CHECKS: dict[str, Callable[[], float]] = {
    "cut": lambda: cut_error(MODELS["ragged"], 7),
    "cut mean": lambda: cut_error(MODELS["mean"], 7),
    "cut token shift": lambda: cut_error(MODELS["token shift"], 7),
    "clear": lambda: clear_error(MODELS["ragged"]),
}
ALL = "cut, clear"
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "positions restart": (GPT, "forward", partialmethod(forward, resume=False), ALL),
    "no mask": (Attention, "weights", partialmethod(weights, last=BLOCK), ALL),
    "one future position": (Attention, "weights", partialmethod(weights, last=1), ALL),
    "not the present": (Attention, "weights", partialmethod(weights, last=-1), ALL),
    "keys off by one": (LayerCache, "append", partialmethod(append, off=1), ALL),
    "the whole buffer": (LayerCache, "append", partialmethod(append, whole=True), ALL),
    "shift off by one": (ShiftCache, "append", partialmethod(append_shift, off=1),
                         "cut token shift"),
    "mean of the piece": (CausalMean, "forward", partialmethod(mean, look_back=False), "cut mean"),
}  # fmt: skip
HARMLESS: dict[str, tuple[Any, str, Any, str]] = {
    "forward": (GPT, "forward", forward, ALL),
    "weights": (Attention, "weights", weights, ALL),
    "append": (LayerCache, "append", append, ALL),
    "append to a shift cache": (ShiftCache, "append", append_shift, "cut token shift"),
    "mean": (CausalMean, "forward", mean, "cut mean"),
}


@pytest.mark.parametrize(("where", "what", "wrong", "checks"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_reported(
    where: Any, what: str, wrong: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    for check in checks.split(", "):
        assert CHECKS[check]() > 1e-2, f"{check} is blind"


@pytest.mark.parametrize(("where", "what", "same", "checks"), HARMLESS.values(), ids=HARMLESS)
def test_the_replacement_without_its_fault_is_harmless(
    where: Any, what: str, same: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, same)
    for check in checks.split(", "):
        assert CHECKS[check]() < 1e-10
