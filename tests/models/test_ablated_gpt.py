"""Every stage is the GPT without just the parts it lacks; with all parts it is the GPT."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.models import GPT, AblatedGPT, AblatedGPTConfig, build_model, count_parameters
from nanogpt.models.ablated_gpt import (
    PARTS,
    mean_by_loop,
    mean_by_matrix,
    mean_by_softmax,
    sinusoidal_embeddings,
)
from tests.models.oracles import (
    DIVIDING,
    STAGES,
    TOLERANCE,
    causality_violations,
    naive_attention,
    parity_error,
    randomize,
    some_ids,
)

RAGGED = {**DIVIDING, "n_embd": 14}  # three heads of 4: only with a projection
UNNORMALIZED_TOLERANCE = 1e-8  # without norms, gradients reach 1e5
every_stage = pytest.mark.parametrize("parts", STAGES, ids=" ".join)


def stage(parts: list[str], **settings: Any) -> AblatedGPT:
    model = build_model("ablated_gpt", **{**DIVIDING, **settings}, parts=parts)
    assert isinstance(model, AblatedGPT)
    return model


def random_stage(parts: list[str], **settings: Any) -> AblatedGPT:
    return randomize(stage(parts, **settings))


def plain_logits(model: GPT, ids: Tensor, parts: list[str]) -> Tensor:
    """Compute a stage's logits from its parameters, applying only the given parts."""
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

    def compute(x: Tensor, name: str) -> Tensor:
        if "feed_forward" not in parts:
            return x
        return linear(linear(x, f"{name}.up_proj").clamp(min=0), f"{name}.down_proj")

    x = w["token_embedding.weight"][ids] + w["position_embedding.weight"][: ids.shape[1]]
    for block in (f"blocks.{i}" for i in range(DIVIDING["n_layer"])):
        y = gather(norm(x, f"{block}.ln_1"), f"{block}.attn")
        x = x + y if "residual" in parts else y
        y = compute(norm(x, f"{block}.ln_2"), f"{block}.mlp")
        x = x + y if "residual" in parts else y
    return linear(norm(x, "ln_f"), "lm_head")


# the mean


@pytest.mark.parametrize("size", [1, 2, 11])
@pytest.mark.parametrize("mean", [mean_by_loop, mean_by_matrix, mean_by_softmax])
def test_each_form_of_the_mean_equals_naive_loops(mean: Any, size: int) -> None:
    x = torch.randn(3, size, 5, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for b in range(3):
        for t in range(size):
            for s in range(t + 1):
                expected[b, t] += x[b, s] / (t + 1)
    torch.testing.assert_close(mean(x), expected, atol=1e-12, rtol=0)


# parts


@every_stage
def test_a_stage_has_just_its_parts(parts: list[str]) -> None:
    error = parity_error(random_stage(parts), lambda model, ids: plain_logits(model, ids, parts))
    assert error < UNNORMALIZED_TOLERANCE


def test_with_an_output_projection_heads_need_not_fill_the_width() -> None:
    parts = ["attention", "feed_forward", "residual"]
    model = random_stage(parts, n_embd=14)
    error = parity_error(model, lambda model, ids: plain_logits(model, ids, parts))
    assert error < UNNORMALIZED_TOLERANCE


@every_stage
def test_a_position_depends_on_itself_and_the_past_only(parts: list[str]) -> None:
    assert causality_violations(random_stage(parts)) == 0


def test_the_order_of_parts_does_not_matter() -> None:
    models = [random_stage(parts) for parts in (STAGES[-1], STAGES[-1][::-1])]
    ids = some_ids(models[0])
    assert torch.equal(models[0](ids), models[1](ids))


@pytest.mark.parametrize("settings", [DIVIDING, RAGGED], ids=["dividing", "ragged"])
def test_with_every_part_it_is_the_gpt_bit_for_bit(settings: dict[str, int]) -> None:
    models = []
    for architecture in ("gpt", "ablated_gpt"):
        torch.manual_seed(3)
        models.append(build_model(architecture, **settings))
    gpt, ablated = (model.state_dict() for model in models)
    assert list(gpt) == list(ablated)
    assert all(torch.equal(gpt[name], ablated[name]) for name in gpt)
    ids = some_ids(models[0])
    assert torch.equal(models[0](ids), models[1](ids))


# parameters


def test_every_part_has_its_own_parameters_only() -> None:
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
        assert count_parameters(stage(list(parts))) == count, parts
    assert count_parameters(stage(STAGES[-1], positions="sinusoidal")) == count - T * C


# positions


@pytest.mark.parametrize("n_embd", [1, 2, 7, 12])
def test_sinusoidal_embeddings_equal_the_formula(n_embd: int) -> None:
    table = sinusoidal_embeddings(50, n_embd)
    assert table.shape == (50, n_embd)
    for position in range(50):
        for channel in range(n_embd):
            angle = position / 10_000 ** ((channel - channel % 2) / n_embd)
            wave = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(wave, abs=1e-5)


def test_sinusoidal_positions_are_added_but_not_trained() -> None:
    parts = STAGES[-1]
    model = random_stage(parts, positions="sinusoidal")
    table = model.position_embedding.weight
    assert torch.equal(
        table, sinusoidal_embeddings(DIVIDING["block_size"], DIVIDING["n_embd"]).double()
    )
    assert parity_error(model, lambda model, ids: plain_logits(model, ids, parts)) < TOLERANCE
    model(some_ids(model)).sum().backward()
    assert table.grad is None
    assert not table.requires_grad
    others = [p for p in model.parameters() if p is not table]
    assert all(parameter.grad is not None for parameter in others)


def test_the_mean_ignores_order_without_position_embeddings() -> None:
    model = random_stage(["mean"], n_layer=1)
    nn.init.zeros_(model.position_embedding.weight)
    forward = torch.tensor([[1, 2, 3, 4]])
    backward = torch.tensor([[3, 2, 1, 4]])
    torch.testing.assert_close(model(forward)[:, -1], model(backward)[:, -1])


# mistakes


@pytest.mark.parametrize(
    ("settings", "way_out"),
    [
        (
            {"parts": ["attention", "mlp"]},
            "no part 'mlp'; choose from mean, attention",
        ),
        ({"parts": ["mean", "attention"]}, "exactly one of mean and attention"),
        ({"parts": ["feed_forward"]}, "exactly one of mean and attention"),
        ({"parts": []}, "exactly one of mean and attention"),
        ({"parts": ["attention", "residual"]}, "add it to parts"),
        ({"positions": "rotary"}, "learned or sinusoidal, not 'rotary'"),
        ({"parts": ["attention"], "n_embd": 14}, "n_embd 14 must be a multiple of n_head"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
        ({"n_layer": 0}, "n_layer must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_answered_in_one_line(settings: dict[str, Any], way_out: str) -> None:
    settings = {**DIVIDING, **settings}
    with pytest.raises(ValueError, match=way_out):
        AblatedGPTConfig(**{k: v for k, v in settings.items() if k != "vocab_size"})
    with pytest.raises(UserError, match=way_out) as caught:
        build_model("ablated_gpt", settings.pop("vocab_size"), **settings)
    assert "\n" not in str(caught.value)
