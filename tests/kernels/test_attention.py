"""Tiled attention with dropout equals a naive loop with the same mask, forward and backward."""

import pytest
import torch
from torch import Tensor

from nanogpt import kernels
from nanogpt.kernels import attention
from nanogpt.kernels.attention import CHUNK, FusedAttention, tiles
from nanogpt.models import ModernConfig, ModernGPT
from tests.models.oracles import TOLERANCE, attention_error, keep_factor


def causal_attention(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0) -> Tensor:
    return FusedAttention(p)(q, k, v)


@pytest.mark.parametrize(("batch", "n_head"), [(5, 1), (CHUNK, 1), (CHUNK + 5, 1), (7, 7)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_output_and_gradients_equal_naive_loops(batch: int, n_head: int, p: float) -> None:
    assert attention_error(causal_attention, batch, n_head, p) < TOLERANCE


def test_the_tile_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def factors_by_tile(shape: tuple[int, ...], p: float) -> Tensor:
        factors = torch.full((shape[0] * shape[1], *shape[2:]), torch.nan, dtype=torch.float64)
        for tile in tiles(len(factors), shape[2]):
            factors[tile] = keep_factor(tuple(factors[tile].shape), p)
        return factors.view(shape)

    for heads, rows in ((4, 3), (5, 7), (100, 1)):
        monkeypatch.setattr(attention, "CHUNK", heads)
        monkeypatch.setattr(attention, "ROWS", rows)
        assert attention_error(causal_attention, 3, 5, 0.3, factors_by_tile) < TOLERANCE


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_strided_inputs_give_the_same(p: float) -> None:
    def strided_attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
        strided = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
        return causal_attention(*strided, p)

    assert attention_error(strided_attention, 2, 3, p) < TOLERANCE


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        torch.manual_seed(1)
        return causal_attention(q, k, v, 0.3)

    monkeypatch.setattr(attention, "CHUNK", 2)
    qkv = torch.randn(3, 1, 3, 3, 2, dtype=torch.float64).requires_grad_().unbind()
    assert torch.autograd.gradcheck(seeded, qkv)


def test_the_mask_depends_on_the_generator() -> None:
    q, k, v = torch.randn(3, 2, 3, 8, 4)
    torch.manual_seed(1)
    first, second = causal_attention(q, k, v, 0.5), causal_attention(q, k, v, 0.5)
    torch.manual_seed(1)
    assert torch.equal(first, causal_attention(q, k, v, 0.5))
    assert not torch.equal(first, second)


def test_the_first_position_is_its_own_value_or_zero() -> None:
    q, k, v = torch.randn(3, 40, 5, 3, 4)
    first = causal_attention(q, k, v, 0.5)[:, :, 0]
    kept = first.any(-1)
    assert 50 < kept.sum() < 150
    assert torch.equal(first[kept], 2 * v[:, :, 0][kept])


def test_a_second_backward_pass_gives_the_same_gradients() -> None:
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 2, 3, 8, 4))
    y = causal_attention(q, k, v, 0.3).square().sum()
    first = torch.autograd.grad(y, (q, k, v), retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(y, (q, k, v)), strict=True):
        assert torch.equal(a, b)


def test_the_modern_gpt_trains_under_bf16_autocast() -> None:
    # rotary tables are float32 and values bf16: attention must see one dtype
    torch.manual_seed(0)
    net = kernels.install(ModernGPT(17, ModernConfig(16, 2, 2, 8, dropout=0.2)))
    ids = torch.randint(17, (3, 16))
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    gradients = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = net(ids).float().square().mean()
        gradients.append(torch.autograd.grad(loss, list(net.parameters())))
    for exact, rounded in zip(*gradients, strict=True):
        assert (rounded - exact).norm() < 0.1 * exact.norm()


def test_bf16_autocast_is_close_to_float32() -> None:
    torch.manual_seed(0)
    leaves = [x.requires_grad_() for x in torch.randn(3, 5, 7, 16, 8)]
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            q, k, v = (x.bfloat16() if enabled else x for x in leaves)  # as a linear leaves them
            y = causal_attention(q, k, v, 0.2)
        results.append([y.float(), *torch.autograd.grad(y.square().sum(), leaves)])
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("length", [1, 3, 7])
def test_attention_is_computed_in_the_dtype_of_the_cache(length: int) -> None:
    q, (k, v) = torch.randn(2, 3, length, 8), torch.randn(2, 2, 3, 7, 8).bfloat16()
    y = causal_attention(q, k, v)
    assert y.dtype == torch.float32
    expected = causal_attention(q, k.float(), v.float())
    assert (y - expected).norm() < 0.02 * expected.norm()
