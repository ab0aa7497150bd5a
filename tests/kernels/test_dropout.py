"""Dropout from 16-bit draws: uniform bits, exact probability, unchanged mean."""

import math

import pytest
import torch

from nanogpt.kernels.dropout import FastDropout, keep_mask, random_bits, threshold
from tests.models.oracles import TOLERANCE, keep_factor

SIGMAS = 5


def test_every_bit_is_uniform() -> None:
    torch.manual_seed(0)
    n = 2**18
    lanes = random_bits(4 * n).view(n, 4)
    for bit in range(16):  # bit 15 is the sign: all 64 bits of a word are drawn
        ones = ((lanes >> bit) & 1).sum(0)
        assert (ones - n / 2).abs().max() < SIGMAS * math.sqrt(n / 4)


def test_the_four_lanes_of_a_word_are_independent() -> None:
    torch.manual_seed(0)
    lanes = random_bits(2**20).view(-1, 4).double()
    off_diagonal = torch.corrcoef(lanes.T) - torch.eye(4, dtype=torch.float64)
    assert off_diagonal.abs().max() < SIGMAS / math.sqrt(2**18)


@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 1001])
def test_any_number_of_values_can_be_drawn(n: int) -> None:
    assert random_bits(n).shape == (n,)
    assert random_bits(n).dtype == torch.int16


@pytest.mark.parametrize("dropped", [0, 1, 6554, 13107, 32768, 65535])
def test_the_threshold_is_exact_and_restores_the_mean(
    dropped: int,
) -> None:
    every_value = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    p = dropped / 2**16
    kept = keep_mask(every_value, p, every_value.double()).sum().item()
    assert kept == 2**16 - dropped
    assert kept * threshold(p)[1] == pytest.approx(2**16, rel=1e-15)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_the_share_of_kept_elements_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    n = 2**22
    y = FastDropout(p)(torch.ones(n))
    sigma = math.sqrt(p * (1 - p) / n)
    assert (y != 0).double().mean().item() == pytest.approx(1 - p, abs=SIGMAS * sigma + 2**-17)
    assert y.double().mean().item() == pytest.approx(1, abs=SIGMAS * sigma / (1 - p))


@pytest.mark.parametrize("transposed", [False, True])
def test_output_and_gradient_are_multiplied_by_the_mask(transposed: bool) -> None:
    x, dy = torch.randn(2, 7, 9, dtype=torch.float64)
    x, dy = (x.T, dy.T) if transposed else (x, dy)
    x.requires_grad_()
    torch.manual_seed(1)
    y = FastDropout(0.3)(x)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.manual_seed(1)
    factor = keep_factor(x.shape, 0.3)
    assert 0 < factor.count_nonzero() < factor.numel()
    torch.testing.assert_close(y, x * factor, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(dx, dy * factor, atol=TOLERANCE, rtol=0)


def test_gradcheck() -> None:
    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return FastDropout(0.3)(x)

    assert torch.autograd.gradcheck(seeded, torch.randn(3, 5).double().requires_grad_())


def test_the_mask_depends_on_the_generator() -> None:
    drop, x = FastDropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(first, drop(x))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_it_is_the_identity_in_evaluation_and_at_p_0(p: float, training: bool) -> None:
    x, state = torch.randn(5, 3), torch.get_rng_state()
    assert torch.equal(FastDropout(p).train(training)(x), x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays_the_same(dtype: torch.dtype) -> None:
    assert FastDropout(0.2)(torch.ones(10, dtype=dtype)).dtype == dtype
