"""The checks of the other modules have eyes: each reports a fault that is planted in the models."""

from collections.abc import Callable
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.models import GPT, attention, dropout, gpt
from nanogpt.kernels.attention import _CPUAttentionWithDropout as CPUAttention
from nanogpt.kernels.dropout import _CPUDropout as CPUDropout
from tests.models.oracles import (
    DIVIDING,
    RAGGED,
    TOLERANCE,
    attention_error,
    causality_violations,
    influence,
    loud_gpt,
    naive_logits,
    parity_error,
    torch_logits,
)

CHECKS: dict[str, Callable[[], float]] = {
    "torch": lambda: parity_error(loud_gpt(DIVIDING), torch_logits),
    "loops": lambda: parity_error(loud_gpt(RAGGED), naive_logits),
    "causality": lambda: causality_violations(loud_gpt(RAGGED)),
    "dropout": lambda: parity_error(loud_gpt(RAGGED, 0.3), partial(naive_logits, p=0.3)),
    "future": lambda: influence(loud_gpt(RAGGED, 0.3)).triu(1).max().item(),
    "attention": lambda: attention_error(attention.causal_attention, 29, 1, 0.3),
}


def attend(
    q: Tensor, k: Tensor, v: Tensor, _: float, last: int = 0, first: int = -99, power: float = -0.5
) -> Tensor:
    """Attend to the positions from t + first to t + last, or to t alone where there are none."""
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(last).triu(first)
    seen |= ~seen.any(1, keepdim=True) & torch.eye(q.shape[2], dtype=torch.bool)
    return F.scaled_dot_product_attention(q, k, v, seen, scale=q.shape[-1] ** power)


def block(
    self: gpt.Block, x: Tensor, _: None, onto: tuple[int, int] = (1, 1), post: bool = False
) -> Tensor:
    """Add each branch to ``onto`` times the stream; post-norm normalises the stream itself."""
    if post:
        x = self.ln_1(onto[0] * x + self.attn(x))
        return self.ln_2(onto[1] * x + self.mlp(x))
    x = onto[0] * x + self.attn(self.ln_1(x))
    return onto[1] * x + self.mlp(self.ln_2(x))


def mlp(
    self: gpt.FeedForward, x: Tensor, activation: Callable[[Tensor], Tensor] = F.relu
) -> Tensor:
    return self.dropout(self.down_proj(activation(self.up_proj(x))))


def forward(self: GPT, ids: Tensor, shift: int = 0, ln_f: bool = True) -> Tensor:
    positions = torch.arange(ids.shape[1]) + shift
    x = self.token_embedding(ids) + self.position_embedding(positions)
    for one in self.blocks:
        x = one(x)
    return self.lm_head(self.ln_f(x) if ln_f else x)


def backward(
    ctx: Any, dy: Tensor, real: Callable[..., Any], **changed: Callable[..., Tensor]
) -> Any:
    """Run the attention's own backward pass with some of what forward saved changed."""
    saved = dict(zip("qkvyb", ctx.saved_tensors, strict=True))
    saved |= {name: change(saved[name]) for name, change in changed.items()}
    return real(SimpleNamespace(saved_tensors=saved.values(), p=ctx.p, shape=ctx.shape), dy)


def no_rescale(p: float, real: Callable[..., Any] = dropout.threshold) -> tuple[int, float]:
    return real(p)[0], 1.0


def no_scale(
    q: Tensor, *rest: Tensor, real: Callable[..., Tensor] = attention.attention_weights
) -> Tensor:
    return real(q * q.shape[-1] ** 0.5, *rest)


def future_mask(*size_like: Any, real: Callable[..., Tensor] = attention.causal_mask) -> Tensor:
    return real(*size_like).triu(2)


def heads_reversed(*qkvp: Any, real: Callable[..., Tensor] = gpt.causal_attention) -> Tensor:
    return real(*qkvp).flip(1)


def q_for_k(
    q: Tensor, k: Tensor, *vp: Any, real: Callable[..., Tensor] = gpt.causal_attention
) -> Tensor:
    return real(k, q, *vp)


heads = partial(partial, attend)
blocks = partial(partialmethod, block)
backwards = partial(partial, backward, real=CPUAttention.backward)
BOTH, ALL = "torch, loops", "torch, loops, causality"
DROPS = "dropout, attention"

# What is replaced in what, by what, and the checks that must see it.
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "the mask hides the present": (gpt, "causal_attention", heads(last=-1), BOTH),
    "the mask shows one future position": (gpt, "causal_attention", heads(last=1), ALL),
    "a position sees itself only": (gpt, "causal_attention", heads(first=0), ALL),
    "scores are not scaled": (gpt, "causal_attention", heads(power=0), BOTH),
    "heads join in the wrong order": (gpt, "causal_attention", heads_reversed, BOTH),
    "queries and keys are exchanged": (gpt, "causal_attention", q_for_k, BOTH),
    "no residual around attention": (gpt.Block, "forward", blocks(onto=(0, 1)), BOTH),
    "no residual around the mlp": (gpt.Block, "forward", blocks(onto=(1, 0)), BOTH),
    "post-norm": (gpt.Block, "forward", blocks(post=True), BOTH),
    "GELU for ReLU": (gpt.FeedForward, "forward", partialmethod(mlp, activation=F.gelu), BOTH),
    "positions are shifted by one": (GPT, "forward", partialmethod(forward, shift=1), BOTH),
    "no final LayerNorm": (GPT, "forward", partialmethod(forward, ln_f=False), BOTH),
    "weights are not rescaled": (attention, "threshold", no_rescale, DROPS),
    "activations are not rescaled": (dropout, "threshold", no_rescale, "dropout"),
    "dropout's backward keeps all": (CPUDropout, "backward", lambda _, dy: (dy, None), "dropout"),
    "the CPU's mask shows the future": (attention, "causal_mask", future_mask, f"{DROPS}, future"),
    "the CPU's scores are not scaled": (attention, "attention_weights", no_scale, DROPS),
    "backward has another mask": (CPUAttention, "backward", backwards(b=torch.flipud), DROPS),
    "backward has no row sum": (CPUAttention, "backward", backwards(y=torch.zeros_like), DROPS),
}
HARMLESS: dict[str, tuple[Any, str, Any, str]] = {
    "attention": (gpt, "causal_attention", heads(), ALL),
    "block": (gpt.Block, "forward", blocks(), ALL),
    "mlp": (gpt.FeedForward, "forward", partialmethod(mlp), ALL),
    "forward": (GPT, "forward", partialmethod(forward), ALL),
    "backward": (CPUAttention, "backward", backwards(), DROPS),
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
        assert CHECKS[check]() < TOLERANCE
