"""The modern GPT, shifted or not, against itself written out another way; what it promises."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.models import ModernGPT, Shifted, modern, shifted
from nanogpt.kernels.elementwise import turn
from nanogpt.models.modern import LOGIT_CAP, ModernFeedForward, rotation, corrupt_tokens
from nanogpt.models.modern import token_shift
from tests.models.oracles import DIVIDING, loud

B, T = 3, 11


def model(kind: type[ModernGPT] = ModernGPT) -> ModernGPT:
    return loud(kind(**DIVIDING)).eval()


def ids() -> Tensor:
    return torch.randint(17, (B, T), generator=torch.Generator().manual_seed(2))


def normal(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def turned(x: Tensor, position: int) -> Tensor:
    """Turn one position of a head, (B, hs), as complex numbers."""
    half = x.shape[-1] // 2
    angles = position * 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    y = torch.complex(x[:, ::2], x[:, 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.stack([y.real, y.imag], -1).flatten(-2)


def read_late(x: Tensor) -> Tensor:
    """One channel and one position at a time: thirds are read 0, 1 and 2 positions late."""
    y, C = torch.zeros_like(x), x.shape[-1]
    for t in range(x.shape[1]):
        for c in range(C):
            late = c // math.ceil(C / 3)
            if t >= late:
                y[:, t, c] = x[:, t - late, c]
    return y


def logits_by_hand(net: Any, text: Tensor) -> Tensor:
    """One position and one head at a time; nothing of the model but its weights."""
    late = read_late if isinstance(net, Shifted) else lambda x: x
    C, nh = net.token_embedding.embedding_dim, net.blocks[0].attn.n_head
    hs, stream = C // nh, normal(net.token_embedding.weight[text])
    for block in net.blocks:
        q, k, v = (late(normal(stream)) @ block.attn.qkv.weight.T).split(C, -1)
        rows = []
        for t in range(T):
            heads = []
            for h in (slice(i * hs, (i + 1) * hs) for i in range(nh)):
                query = turned(normal(q[:, t, h]), t)
                keys = torch.stack([turned(normal(k[:, s, h]), s) for s in range(t + 1)], 1)
                scores = (keys * query[:, None]).sum(-1) / math.sqrt(hs)
                heads.append((scores.softmax(-1)[..., None] * v[:, : t + 1, h]).sum(1))
            rows.append(torch.cat(heads, -1))
        stream = stream + torch.stack(rows, 1) @ block.attn.out_proj.weight.T
        wide = late(normal(stream)) @ block.mlp.up_proj.weight.T
        stream = stream + (wide * wide * (wide > 0)) @ block.mlp.down_proj.weight.T
    logits = normal(stream) @ net.lm_head.weight.T
    return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


def error(net: ModernGPT) -> float:
    return (net(ids()) - logits_by_hand(net, ids())).abs().max().item()


@pytest.mark.parametrize("kind", [ModernGPT, Shifted])
def test_logits_are_those_worked_out_by_hand(kind: type[ModernGPT]) -> None:
    assert error(model(kind)) < 1e-6  # the angles are kept in float32


def backwards(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return turn(x, cos.flip(0), sin.flip(0))


def one_more(x: Tensor, _: None) -> Tensor:
    return token_shift(torch.nn.functional.pad(x, (0, 0, 1, -1)))


def not_squared(self: ModernFeedForward, x: Tensor) -> Tensor:
    return self.down_proj(self.up_proj(x).relu())


@pytest.mark.parametrize(
    ("where", "what", "wrong"),
    [
        (modern, "turn", backwards),
        (shifted, "token_shift", one_more),
        (ModernFeedForward, "forward", not_squared),
    ],
    ids=["turned backwards", "shifted too far", "not squared"],
)
def test_a_planted_fault_is_seen(
    where: Any, what: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    assert error(model(Shifted)) > 1e-2


def test_what_a_query_sees_of_a_key_depends_on_their_distance_alone() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))

    def seen(at: int, of: int) -> float:
        one, other = (rotation(place, place + 1, 8, q) for place in (at, of))
        return (turn(q, *one) * turn(k, *other)).sum().item()

    assert seen(3, 0) == pytest.approx(seen(43, 40), abs=1e-4)
    assert seen(3, 0) != pytest.approx(seen(4, 0), abs=1e-2)


@pytest.mark.parametrize("kind", [ModernGPT, Shifted])
def test_the_future_has_no_say(kind: type[ModernGPT]) -> None:
    net = model(kind)
    embedded: list[Tensor] = []

    def keep(module: Any, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    net.token_embedding.register_forward_hook(keep)
    for t in (0, 1, 4, T - 1):
        embedded.clear()
        net(ids())[0, t].sum().backward()
        reached = embedded[0].grad[0].abs().amax(-1) > 0  # type: ignore[index]
        assert reached.tolist() == [s <= t for s in range(T)]


def test_noise_is_for_training_only() -> None:
    net = loud(ModernGPT(**DIVIDING, noise=0.3))
    assert torch.equal(net.eval()(ids()), model()(ids()))
    assert not torch.allclose(net.train()(ids()), model()(ids()))


def test_as_many_characters_are_noise_as_asked_for_and_all_are_as_likely() -> None:
    torch.manual_seed(1)
    n, p, V = 200_000, 0.3, 5
    clean = torch.full((2, n // 2), 3)
    noisy = corrupt_tokens(clean, p, V)
    shares = noisy.flatten().bincount(minlength=V) / n
    expected = torch.full((V,), p / V)
    expected[3] += 1 - p
    spread = (expected * (1 - expected) / n).sqrt()
    assert ((shares - expected).abs() < 4 * spread).all()
    assert (clean == 3).all()
    assert noisy.dtype == clean.dtype
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(corrupt_tokens(clean, 0.0, V), clean)


def test_it_begins_as_a_uniform_guess() -> None:
    assert not ModernGPT(**DIVIDING)(ids()).any()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"n_embd": 9}, "multiple of 2 x n_head 3"), ({"n_layer": 0}, "n_layer must be at least 1"),
     ({"dropout": 1.0}, "dropout must lie in"), ({"noise": -0.1}, "noise must lie in")],
    ids=str,
)  # fmt: skip
def test_sizes_that_make_no_model_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ModernGPT(**{**DIVIDING, **settings})


def test_a_window_longer_than_the_block_is_refused() -> None:
    with pytest.raises(ValueError, match="14 characters are more than block_size, 13"):
        model()(torch.zeros(1, 14, dtype=torch.long))
