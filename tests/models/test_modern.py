"""The modern GPT, with and without token shift, equals an independent implementation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.models import ModernConfig, ModernGPT, build_model, modern
from nanogpt.models.modern import (
    LOGIT_CAP,
    ModernFeedForward,
    Rotary,
    RotaryTables,
    corrupt_tokens,
    rotary_tables,
    token_shift,
)
from tests.models.oracles import DIVIDING, randomize

B, T = 3, 11
SIZES = {name: size for name, size in DIVIDING.items() if name != "vocab_size"}


def model(**settings: Any) -> ModernGPT:
    net = randomize(build_model("modern", **DIVIDING, **settings)).eval()
    assert isinstance(net, ModernGPT)
    return net


def ids() -> Tensor:
    return torch.randint(17, (B, T), generator=torch.Generator().manual_seed(2))


def normalized(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def rotated(x: Tensor, position: int) -> Tensor:
    """Rotate one position of a head, (B, hs), as complex numbers."""
    half = x.shape[-1] // 2
    angles = position * 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    y = torch.complex(x[:, ::2], x[:, 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.stack([y.real, y.imag], -1).flatten(-2)


def shifted(x: Tensor) -> Tensor:
    """Shift one channel and one position at a time: thirds by 0, 1 and 2 positions."""
    y, C = torch.zeros_like(x), x.shape[-1]
    for t in range(x.shape[1]):
        for c in range(C):
            late = c // math.ceil(C / 3)
            if t >= late:
                y[:, t, c] = x[:, t - late, c]
    return y


def naive_logits(net: Any, text: Tensor) -> Tensor:
    """Compute one position and one head at a time, from nothing but the model's weights."""
    late = shifted if net.blocks[0].token_shift else lambda x: x
    C, nh = net.token_embedding.embedding_dim, net.blocks[0].attn.n_head
    hs, stream = C // nh, normalized(net.token_embedding.weight[text])
    for block in net.blocks:
        q, k, v = (late(normalized(stream)) @ block.attn.qkv.weight.T).split(C, -1)
        rows = []
        for t in range(T):
            heads = []
            for h in (slice(i * hs, (i + 1) * hs) for i in range(nh)):
                query = rotated(normalized(q[:, t, h]), t)
                keys = torch.stack([rotated(normalized(k[:, s, h]), s) for s in range(t + 1)], 1)
                scores = (keys * query[:, None]).sum(-1) / math.sqrt(hs)
                heads.append((scores.softmax(-1)[..., None] * v[:, : t + 1, h]).sum(1))
            rows.append(torch.cat(heads, -1))
        stream = stream + torch.stack(rows, 1) @ block.attn.out_proj.weight.T
        wide = late(normalized(stream)) @ block.mlp.up_proj.weight.T
        stream = stream + (wide * wide * (wide > 0)) @ block.mlp.down_proj.weight.T
    logits = normalized(stream) @ net.lm_head.weight.T
    return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


def error(net: ModernGPT) -> float:
    return (net(ids()) - naive_logits(net, ids())).abs().max().item()


BOTH = pytest.mark.parametrize("shift", [False, True], ids=["plain", "token shift"])


@BOTH
def test_logits_equal_the_naive_ones(shift: bool) -> None:
    assert error(model(token_shift=shift)) < 1e-6  # the angles are float32


def backward_rotation(self: Rotary, x: Tensor, tables: RotaryTables) -> Tensor:
    return rotary(self, x, (tables[0].flip(0), tables[1].flip(0)))


def one_more(x: Tensor, _: None) -> Tensor:
    return token_shift(torch.nn.functional.pad(x, (0, 0, 1, -1)))


def not_squared(self: ModernFeedForward, x: Tensor) -> Tensor:
    return self.down_proj(self.up_proj(x).relu())


rotary = Rotary.forward
FAULTS = {
    "rotated backward": (Rotary, "forward", backward_rotation),
    "shifted too far": (modern, "token_shift", one_more),
    "not squared": (ModernFeedForward, "forward", not_squared),
}


@pytest.mark.parametrize(("where", "what", "wrong"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_reported(
    where: Any, what: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    assert error(model(token_shift=True)) > 1e-2


def test_attention_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))

    def score(query_at: int, key_at: int) -> float:
        one, other = (
            Rotary()(x, rotary_tables(torch.tensor([place]), 8, x.dtype))
            for x, place in ((q, query_at), (k, key_at))
        )
        return (one * other).sum().item()

    assert score(3, 0) == pytest.approx(score(43, 40), abs=1e-4)
    assert score(3, 0) != pytest.approx(score(4, 0), abs=1e-2)


@pytest.mark.parametrize("channels", [2, 4, 6, 12])
def test_token_shift_moves_thirds_of_the_channels(channels: int) -> None:
    x = torch.randn(2, 5, channels)
    assert torch.equal(token_shift(x), shifted(x))
    assert torch.equal(token_shift(x[:, :1]), shifted(x[:, :1]))


@BOTH
def test_a_position_depends_on_itself_and_the_past_only(shift: bool) -> None:
    net = model(token_shift=shift)
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


def test_token_noise_acts_in_training_only() -> None:
    net = model(token_noise=0.3)
    assert torch.equal(net.eval()(ids()), model()(ids()))
    assert not torch.allclose(net.train()(ids()), model()(ids()))


def test_the_share_of_corrupted_tokens_and_their_distribution() -> None:
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


def test_initial_logits_are_zero() -> None:
    assert not build_model("modern", **DIVIDING)(ids()).any()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"n_embd": 9}, "multiple of 2 \\* n_head 3"), ({"n_layer": 0}, "n_layer must be at least 1"),
     ({"dropout": 1.0}, "dropout must be in"), ({"token_noise": -0.1}, "token_noise must be in")],
    ids=str,
)  # fmt: skip
def test_invalid_settings_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ModernConfig(**{**SIZES, **settings})


def test_an_input_longer_than_block_size_is_refused() -> None:
    with pytest.raises(ValueError, match="14 characters exceed block_size 13"):
        model()(torch.zeros(1, 14, dtype=torch.long))
