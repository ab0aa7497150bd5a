"""Every rung is the GPT less just those parts that it lacks, and with all of them it is the GPT."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.models import GPT, Rung, build_model, count_parameters
from nanogpt.models.ablated_gpt import (
    PARTS,
    mean_by_loop,
    mean_by_matrix,
    mean_by_softmax,
    sinusoids,
)
from tests.models.oracles import (
    DIVIDING,
    RUNGS,
    TOLERANCE,
    causality_violations,
    loud,
    naive_attention,
    parity_error,
    some_ids,
)

RAGGED = {**DIVIDING, "n_embd": 14}  # three heads of 4: only with a projection
every_rung = pytest.mark.parametrize("parts", RUNGS, ids=" ".join)


def loud_rung(parts: list[str], **settings: Any) -> Rung:
    return loud(Rung(**{**DIVIDING, **settings}, parts=parts))


def plain_logits(model: GPT, ids: Tensor, parts: list[str]) -> Tensor:
    """Build a rung from its parameters: what is not in parts does not happen."""
    w = dict(model.named_parameters())

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        if "norm" not in parts:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gather(x: Tensor, name: str) -> Tensor:
        B, T, _ = x.shape
        if "mean" in parts:
            return x.cumsum(1) / torch.arange(1, T + 1)[:, None]
        q, k, v = (
            torch.stack([x @ head.T for head in matrix.chunk(DIVIDING["n_head"])], dim=1)
            for matrix in w[f"{name}.qkv.weight"].chunk(3)
        )
        heads = naive_attention(q, k, v, torch.ones(B, q.shape[1], T, T).double())
        x = torch.cat(list(heads.unbind(1)), dim=-1)
        return linear(x, f"{name}.out_proj") if "residual" in parts else x

    def think(x: Tensor, name: str) -> Tensor:
        if "feed_forward" not in parts:
            return x
        return linear(linear(x, f"{name}.up_proj").clamp(min=0), f"{name}.narrow")

    x = w["token_embedding.weight"][ids] + w["position_embedding.weight"][: ids.shape[1]]
    for block in (f"blocks.{i}" for i in range(DIVIDING["n_layer"])):
        y = gather(norm(x, f"{block}.ln_1"), f"{block}.attn")
        x = x + y if "residual" in parts else y
        y = think(norm(x, f"{block}.ln_2"), f"{block}.mlp")
        x = x + y if "residual" in parts else y
    return linear(norm(x, "ln_f"), "lm_head")


# the mean


@pytest.mark.parametrize("size", [1, 2, 11])
@pytest.mark.parametrize("mean", [mean_by_loop, mean_by_matrix, mean_by_softmax])
def test_each_form_of_the_mean_equals_the_sum_written_out(mean: Any, size: int) -> None:
    x = torch.randn(3, size, 5, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(3):
        for t in range(size):
            for s in range(t + 1):
                expected[b, t] += x[b, s] / (t + 1)
    torch.testing.assert_close(mean(x), expected, atol=1e-12, rtol=0)


# what the parts do


@every_rung
def test_a_rung_is_what_its_parts_say_and_no_more(parts: list[str]) -> None:
    error = parity_error(loud_rung(parts), lambda model, ids: plain_logits(model, ids, parts))
    assert error < TOLERANCE


def test_with_a_projection_heads_need_not_fill_the_width() -> None:
    parts = ["attention", "feed_forward", "residual"]
    model = loud_rung(parts, n_embd=14)
    assert parity_error(model, lambda model, ids: plain_logits(model, ids, parts)) < TOLERANCE


@every_rung
def test_a_position_depends_on_just_itself_and_its_past(parts: list[str]) -> None:
    assert causality_violations(loud_rung(parts)) == 0


def test_the_order_of_parts_does_not_matter() -> None:
    models = [loud_rung(parts) for parts in (RUNGS[-1], RUNGS[-1][::-1])]
    ids = some_ids(models[0])
    assert torch.equal(models[0](ids), models[1](ids))


@pytest.mark.parametrize("settings", [DIVIDING, RAGGED], ids=["dividing", "ragged"])
def test_with_every_part_it_is_the_gpt_bit_for_bit(settings: dict[str, int]) -> None:
    models = []
    for kind in (GPT, Rung):
        torch.manual_seed(3)
        models.append(kind(**settings))
    gpt, rung = (model.state_dict() for model in models)
    assert list(gpt) == list(rung)
    assert all(torch.equal(gpt[name], rung[name]) for name in gpt)
    ids = some_ids(models[0])
    assert torch.equal(models[0](ids), models[1](ids))


# what the parts weigh


def test_every_part_has_its_own_parameters_and_no_others() -> None:
    V, T, L, C = 17, 13, 2, 12
    ends = V * C + T * C + C * V + V
    attention, projection = L * 3 * C * C, L * (C * C + C)
    feed_forward, norms = L * (C * 4 * C + 4 * C + 4 * C * C + C), (2 * L + 1) * 2 * C
    expected = {
        ("mean",): ends,
        ("mean", "residual", "feed_forward"): ends + feed_forward,
        ("attention",): ends + attention,
        ("attention", "feed_forward"): ends + attention + feed_forward,
        ("attention", "feed_forward", "residual"): ends + attention + feed_forward + projection,
        PARTS[1:]: ends + attention + feed_forward + projection + norms,
    }
    for parts, count in expected.items():
        assert count_parameters(Rung(**DIVIDING, parts=parts)) == count, parts
    assert count_parameters(Rung(**DIVIDING, positions="sinusoidal")) == count - T * C


# positions


@pytest.mark.parametrize("n_embd", [1, 2, 7, 12])
def test_sinusoids_are_the_papers(n_embd: int) -> None:
    table = sinusoids(50, n_embd)
    assert table.shape == (50, n_embd)
    for position in range(50):
        for channel in range(n_embd):
            angle = position / 10_000 ** ((channel - channel % 2) / n_embd)
            wave = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(wave, abs=1e-5)


def test_sinusoidal_positions_are_added_and_never_learned() -> None:
    parts = RUNGS[-1]
    model = loud_rung(parts, positions="sinusoidal")
    table = model.position_embedding.weight
    assert torch.equal(table, sinusoids(DIVIDING["block_size"], DIVIDING["n_embd"]).double())
    assert parity_error(model, lambda model, ids: plain_logits(model, ids, parts)) < TOLERANCE
    model(some_ids(model)).sum().backward()
    assert table.grad is None
    assert not table.requires_grad
    others = [p for p in model.parameters() if p is not table]
    assert all(parameter.grad is not None for parameter in others)


def test_without_attention_only_positions_tell_the_order_of_the_past() -> None:
    model = loud_rung(["mean"], n_layer=1)
    nn.init.zeros_(model.position_embedding.weight)
    forth = torch.tensor([[1, 2, 3, 4]])
    back = torch.tensor([[3, 2, 1, 4]])
    torch.testing.assert_close(model(forth)[:, -1], model(back)[:, -1])


# mistakes


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        ({"parts": ["attention", "mlp"]}, "no part 'mlp'; parts are mean, attention, feed_forward"),
        ({"parts": ["mean", "attention"]}, "one of mean and attention"),
        ({"parts": ["feed_forward"]}, "one of mean and attention"),
        ({"parts": []}, "one of mean and attention"),
        ({"parts": ["attention", "residual"]}, "name it in parts"),
        ({"positions": "rotary"}, "learned or sinusoidal, not rotary"),
        ({"parts": ["attention"], "n_embd": 14}, "n_embd 14 must be a multiple of n_head"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_the_way_out(
    settings: dict[str, Any], way_out: str
) -> None:
    settings = {**DIVIDING, **settings}
    with pytest.raises(ValueError, match=way_out):
        Rung(**settings)
    with pytest.raises(UserError, match=way_out) as caught:
        build_model("rung", settings.pop("vocab_size"), **settings)
    assert "\n" not in str(caught.value)
