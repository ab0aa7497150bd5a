"""The elementwise kernels against the plain modules, forward and backward."""

import torch

from nanogpt.kernels.elementwise import ComplexRotary, FastSquaredReLU
from nanogpt.models.modern import Rotary, SquaredReLU


def test_squared_relu_and_its_gradient() -> None:
    x = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    dy = torch.randn(5, 7, dtype=torch.float64)
    fast, plain = FastSquaredReLU(), SquaredReLU()
    torch.testing.assert_close(fast(x), plain(x))
    torch.testing.assert_close(fast(x.detach()), plain(x.detach()))
    (ours,) = torch.autograd.grad(fast(x), x, dy)
    (theirs,) = torch.autograd.grad(plain(x), x, dy)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(fast, x)


def test_rotary_as_complex_numbers_equals_the_plain_module() -> None:
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)  # (B, nh, T, hs), not contiguous
    angles = torch.randn(5, 4)
    exact = Rotary()(x.double(), (angles.double().cos(), angles.double().sin()))
    for rotary in (Rotary(), ComplexRotary()):
        rotated = rotary(x, (angles.cos(), angles.sin()))
        torch.testing.assert_close(rotated.double(), exact)
        half = rotary(x.half(), (angles.cos().half(), angles.sin().half()))
        torch.testing.assert_close(half.double(), exact, atol=1e-2, rtol=1e-2)
    tables = (angles.double().cos(), angles.double().sin())
    assert torch.autograd.gradcheck(
        lambda x: ComplexRotary()(x, tables), x.double().requires_grad_()
    )


def test_a_quarter_turn_maps_the_first_of_a_pair_to_the_second() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    tables = (torch.zeros(1, 2), torch.ones(1, 2))
    for rotary in (Rotary(), ComplexRotary()):
        assert rotary(x, tables).flatten().tolist() == [0.0, 1.0, -1.0, 0.0]
