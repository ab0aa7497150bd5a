"""The elementwise functions against PyTorch's own, forward and backward."""

import torch
import torch.nn.functional as F

from nanogpt.kernels.elementwise import squared_relu, turn


def test_a_squared_relu_and_its_gradient_are_those_of_its_parts() -> None:
    x = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    dy = torch.randn(5, 7, dtype=torch.float64)
    plain = F.relu(x).square()
    torch.testing.assert_close(squared_relu(x), plain)
    torch.testing.assert_close(squared_relu(x.detach()), plain.detach())
    (ours,) = torch.autograd.grad(squared_relu(x), x, dy)
    (theirs,) = torch.autograd.grad(plain, x, dy)
    torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(squared_relu, x)


def test_turning_is_the_same_written_out_and_as_complex_numbers() -> None:
    x = torch.randn(2, 5, 3, 8).transpose(1, 2)  # (B, nh, T, hs), the heads side by side
    angles = torch.randn(5, 4)
    exact = turn(x.double(), angles.double().cos(), angles.double().sin())
    torch.testing.assert_close(turn(x, angles.cos(), angles.sin()).double(), exact)
    half = turn(x.half(), angles.cos().half(), angles.sin().half())
    torch.testing.assert_close(half.double(), exact, atol=1e-2, rtol=1e-2)
    assert torch.autograd.gradcheck(
        lambda x: turn(x, angles.double().cos(), angles.double().sin()),
        x.double().requires_grad_(),
    )


def test_a_quarter_turn_takes_the_first_of_a_pair_to_the_second() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    quarter = (torch.zeros(1, 2), torch.ones(1, 2))
    assert turn(x, *quarter).flatten().tolist() == [0.0, 1.0, -1.0, 0.0]
    assert turn(x.half(), *(part.half() for part in quarter)).flatten().tolist() == [0, 1, -1, 0]
