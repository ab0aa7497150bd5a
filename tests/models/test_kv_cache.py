"""Reading a text piece by piece with a cache is reading it at once."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial, partialmethod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.models import GPT, gpt
from nanogpt.models.kv_cache import Cache, ShiftCache, LayerCache
from nanogpt.models.ablated_gpt import CausalMean, mean_by_matrix
from tests.models.oracles import loud_models

BLOCK = 6
MODELS = loud_models(BLOCK)
LAYERED = [name for name in MODELS if name != "bigram"]


def letters(batch: int, length: int = BLOCK, seed: int = 2) -> Tensor:
    return torch.randint(17, (batch, length), generator=torch.Generator().manual_seed(seed))


def every_cut(length: int) -> Iterator[list[int]]:
    """Every way to cut a text into pieces, as their lengths: 4 is 4, 1 3, 2 2, 1 1 2, …."""
    if length == 0:
        yield []
    for first in range(1, length + 1):
        yield from ([first, *rest] for rest in every_cut(length - first))


def read(model: Any, ids: Tensor, lengths: list[int], cache: Cache) -> Tensor:
    return torch.cat([model(piece, cache) for piece in ids.split(lengths, 1)], 1)


def cutting_error(model: Any, batch: int) -> float:
    """Return the largest difference that reading in pieces makes to a full window's logits."""
    ids = letters(batch)
    whole, cuts = model(ids), every_cut(BLOCK)
    return max(
        (read(model, ids, cut, model.new_cache()) - whole).abs().max().item() for cut in cuts
    )


def clearing_error(model: Any) -> float:
    """Return how much of an earlier, longer text is left in the logits of a later one."""
    cache, ids, cut = model.new_cache(), letters(7, BLOCK - 1), [1, 2, 2]
    read(model, letters(7, seed=3), [4, 2], cache)
    cache.set_length(0)
    return (read(model, ids, cut, cache) - model(ids)).abs().max().item()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 7])
def test_however_a_text_is_cut_its_logits_are_the_same(name: str, batch: int) -> None:
    assert cutting_error(MODELS[name], batch) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_the_same_holds_in_float32_but_for_rounding(name: str) -> None:
    model = deepcopy(MODELS[name]).float()
    largest = model(letters(7)).abs().max().item()  # 5, but 189 where nothing is normalised
    assert cutting_error(model, 7) < 1e-5 * largest


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_of_a_text_after_clear(name: str) -> None:
    assert clearing_error(MODELS[name]) < 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_a_position_of_a_piece_sees_nothing_after_it(name: str) -> None:
    model, ids = MODELS[name], letters(7)
    for place in range(3, BLOCK):
        changed = ids.clone()
        changed[:, place] = (ids[:, place] + 1) % 17
        ours, theirs = (read(model, text, [2, 4], model.new_cache()) for text in (ids, changed))
        assert ours[:, :place].equal(theirs[:, :place])
        assert not ours[:, place].allclose(theirs[:, place])


@pytest.mark.parametrize("name", MODELS)
def test_a_cache_counts_what_it_holds(name: str) -> None:
    cache = MODELS[name].new_cache()
    for expected in (2, 3, 6):
        MODELS[name](letters(1, expected - cache.length), cache)
        assert cache.length == expected
    cache.set_length(0)
    assert cache.length == 0


@pytest.mark.parametrize("name", LAYERED)
@pytest.mark.parametrize("before", [0, 1, BLOCK])
def test_more_than_block_size_is_refused_and_changes_nothing(name: str, before: int) -> None:
    model, ids = MODELS[name], letters(1)
    cache = model.new_cache()
    if before:
        model(ids[:, :before], cache)
    with pytest.raises(ValueError, match=r"7 characters are more than block_size, 6.*the last 6"):
        model(letters(1, BLOCK + 1 - before), cache)
    assert cache.length == before
    if before < BLOCK:
        torch.testing.assert_close(model(ids[:, before:], cache), model(ids)[:, before:])


def test_room_is_taken_once() -> None:
    cache, places = LayerCache(4), set()
    for length in (1, 3):
        kv = torch.randn(2, 1, 1, length, 5)
        keys, values = cache.append(kv)
        assert keys[:, :, -length:].equal(kv[0])
        assert values[:, :, -length:].equal(kv[1])
        places |= {(keys.data_ptr(), values.data_ptr())}
    assert keys.shape == values.shape == (1, 1, 4, 5)
    cache.length = 0
    again = cache.append(kv)
    assert len(places | {(again[0].data_ptr(), again[1].data_ptr())}) == 1


def test_a_cache_of_half_precision_changes_the_logits_by_its_rounding() -> None:
    model = deepcopy(MODELS["ragged"]).float()
    ids, cache = letters(7), model.new_cache(torch.bfloat16)
    difference = read(model, ids, [3, 1, 1, 1], cache) - model(ids)
    assert cache.layers[0].room.dtype == torch.bfloat16
    assert 0 < difference.std() / model(ids).std() < 2**-6


@pytest.mark.parametrize("name", ["ragged", "modern", "shifted"])
def test_a_cache_belongs_to_one_batch(name: str) -> None:
    model = MODELS[name]
    model(letters(7, 2), cache := model.new_cache())
    with pytest.raises(AssertionError, match="one batch"):
        model(letters(1, 2), cache)


# faults


def attend(q: Tensor, k: Tensor, v: Tensor, _: float, last: int = 0) -> Tensor:
    """Show the query of position t, counted in all of the text, what lies up to t + last."""
    T, S = q.shape[2], k.shape[2]
    shown = torch.ones(T, S, dtype=torch.bool).tril(S - T + (last if S > T else 0))
    return F.scaled_dot_product_attention(q, k, v, shown)


def append(self: LayerCache, kv: Tensor, off: int = 0, whole: bool = False) -> tuple[Tensor, ...]:
    """Write keys some places too far, or give back all of the room."""
    begin, self.length = self.length, self.length + kv.shape[3]
    if self.room is None:
        self.room = kv.new_zeros(*kv.shape[:3], self.size + off, kv.shape[4])
    self.room[0, :, :, begin + off : self.length + off] = kv[0]
    self.room[1:, :, :, begin : self.length] = kv[1:]
    return self.room[:, :, :, : self.size if whole else self.length].unbind()


def earlier(self: ShiftCache, x: Tensor, off: int = 0) -> Tensor:
    """Give back what begins some places too far."""
    begin, self.length = self.length, self.length + x.shape[1]
    if self.room is None:
        self.room = x.new_zeros(len(x), self.few + self.size + off, x.shape[2])
    self.room[:, self.few + begin : self.few + self.length] = x
    return self.room[:, begin + off : begin + off + self.few + x.shape[1]]


def forward(self: GPT, ids: Tensor, cache: Cache | None = None, go_on: bool = True) -> Tensor:
    begin = cache.length if cache and go_on else 0
    positions = torch.arange(begin, begin + ids.shape[1])
    x = self.token_embedding(ids) + self.position_embedding(positions)
    for layer, block in enumerate(self.blocks):
        x = block(x, cache.layers[layer] if cache else None)
    return self.lm_head(self.ln_f(x))


def mean(self: CausalMean, x: Tensor, cache: LayerCache | None = None, back: bool = True) -> Tensor:
    past = cache.append(x[None, :, None])[0][:, 0] if cache else x
    return mean_by_matrix(past if back else x)[:, -x.shape[1] :]


CHECKS: dict[str, Callable[[], float]] = {
    "cut": lambda: cutting_error(MODELS["ragged"], 7),
    "cut mean": lambda: cutting_error(MODELS["mean"], 7),
    "cut shifted": lambda: cutting_error(MODELS["shifted"], 7),
    "clear": lambda: clearing_error(MODELS["ragged"]),
}
ALL = "cut, clear"
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "positions start again": (GPT, "forward", partialmethod(forward, go_on=False), ALL),
    "no mask": (gpt, "causal_attention", partial(attend, last=BLOCK), ALL),
    "one future position": (gpt, "causal_attention", partial(attend, last=1), ALL),
    "not the present": (gpt, "causal_attention", partial(attend, last=-1), ALL),
    "keys one place off": (LayerCache, "append", partialmethod(append, off=1), ALL),
    "all of the room is seen": (LayerCache, "append", partialmethod(append, whole=True), ALL),
    "earlier one place off": (ShiftCache, "append", partialmethod(earlier, off=1), "cut shifted"),
    "a mean of a piece": (CausalMean, "forward", partialmethod(mean, back=False), "cut mean"),
}  # fmt: skip
HARMLESS: dict[str, tuple[Any, str, Any, str]] = {
    "forward": (GPT, "forward", forward, ALL),
    "attention": (gpt, "causal_attention", attend, ALL),
    "append": (LayerCache, "append", append, ALL),
    "what is earlier": (ShiftCache, "append", earlier, "cut shifted"),
    "mean": (CausalMean, "forward", mean, "cut mean"),
}


@pytest.mark.parametrize(("where", "what", "wrong", "checks"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_seen(
    where: Any, what: str, wrong: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    for check in checks.split(", "):
        assert CHECKS[check]() > 1e-2, f"{check} is blind"


@pytest.mark.parametrize(("where", "what", "same", "checks"), HARMLESS.values(), ids=HARMLESS)
def test_what_is_planted_is_harmless_but_for_its_fault(
    where: Any, what: str, same: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, same)
    for check in checks.split(", "):
        assert CHECKS[check]() < 1e-10
