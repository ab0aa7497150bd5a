"""Planted faults: the checks of the other modules must report each of them."""

from collections.abc import Callable
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanogpt.kernels import attention, dropout
from nanogpt.kernels.attention import FusedAttention
from nanogpt.kernels.attention import _TiledAttention as TiledAttention
from nanogpt.kernels.dropout import _CPUDropout as CPUDropout
from nanogpt.models import GPT, gpt
from nanogpt.models.gpt import Attention
from tests.models.oracles import (
    DIVIDING,
    RAGGED,
    TOLERANCE,
    attention_error,
    causality_violations,
    influence,
    keep_factor,
    naive_logits,
    parity_error,
    random_gpt,
    torch_logits,
)

CHECKS: dict[str, Callable[[], float]] = {
    "torch": lambda: parity_error(random_gpt(DIVIDING), torch_logits),
    "loops": lambda: parity_error(random_gpt(RAGGED), naive_logits),
    "causality": lambda: causality_violations(random_gpt(RAGGED)),
    "dropout": lambda: parity_error(random_gpt(RAGGED, 0.3), partial(naive_logits, p=0.3)),
    "fast dropout": lambda: parity_error(
        random_gpt(RAGGED, 0.3, installed=True), partial(naive_logits, p=0.3, keep=keep_factor)
    ),
    "future": lambda: influence(random_gpt(RAGGED, 0.3, installed=True)).triu(1).max().item(),
    "tiled": lambda: attention_error(lambda q, k, v, p: FusedAttention(p)(q, k, v), 29, 1, 0.3),
}


def weights(
    self: Attention, q: Tensor, k: Tensor, last: int = 0, first: int = -99, power: float = -0.5
) -> Tensor:
    """Attend to the positions from t + first to t + last, or to t alone if there are none."""
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).tril(last).triu(first)
    seen |= ~seen.any(1, keepdim=True) & torch.eye(q.shape[2], dtype=torch.bool)
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** power
    return scores.masked_fill(~seen, -torch.inf).softmax(-1)


def forward_attention(
    self: Attention, q: Tensor, k: Tensor, v: Tensor, swap: bool = False, flip: bool = False
) -> Tensor:
    """Swap queries and keys, or join the heads in the reverse order."""
    y = self.dropout(self.weights(k, q) if swap else self.weights(q, k)) @ v
    return y.flip(1) if flip else y


def block(
    self: gpt.Block, x: Tensor, _: None, onto: tuple[int, int] = (1, 1), post: bool = False
) -> Tensor:
    """Add each branch to ``onto`` times the stream; post-norm normalizes the stream itself."""
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
    """Run the real backward pass with some of the saved tensors changed."""
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


masks = partial(partialmethod, weights)
attends = partial(partialmethod, forward_attention)
blocks = partial(partialmethod, block)
backwards = partial(partial, backward, real=TiledAttention.backward)
BOTH, ALL = "torch, loops", "torch, loops, causality"
TILED = "fast dropout, tiled"

# name: (owner, attribute, faulty replacement, the checks that must report it)
FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "the mask hides the present": (Attention, "weights", masks(last=-1), BOTH),
    "the mask shows one future position": (Attention, "weights", masks(last=1), ALL),
    "a position sees itself only": (Attention, "weights", masks(first=0), ALL),
    "scores are not scaled": (Attention, "weights", masks(power=0), BOTH),
    "heads join in the wrong order": (Attention, "forward", attends(flip=True), BOTH),
    "queries and keys are swapped": (Attention, "forward", attends(swap=True), BOTH),
    "no residual around attention": (gpt.Block, "forward", blocks(onto=(0, 1)), BOTH),
    "no residual around the mlp": (gpt.Block, "forward", blocks(onto=(1, 0)), BOTH),
    "post-norm": (gpt.Block, "forward", blocks(post=True), BOTH),
    "GELU for ReLU": (gpt.FeedForward, "forward", partialmethod(mlp, activation=F.gelu), BOTH),
    "positions are shifted by one": (GPT, "forward", partialmethod(forward, shift=1), BOTH),
    "no final LayerNorm": (GPT, "forward", partialmethod(forward, ln_f=False), BOTH),
    "attention has no dropout": (Attention, "forward", lambda s, q, k, v: s.weights(q, k) @ v,
                                 "dropout"),
    "weights are not rescaled": (attention, "threshold", no_rescale, TILED),
    "activations are not rescaled": (dropout, "threshold", no_rescale, "fast dropout"),
    "dropout's backward keeps all": (CPUDropout, "backward", lambda _, dy: (dy, None),
                                     "fast dropout"),
    "the tiles' mask shows the future": (attention, "causal_mask", future_mask, f"{TILED}, future"),
    "the tiles' scores are not scaled": (attention, "attention_weights", no_scale, TILED),
    "backward has another mask": (TiledAttention, "backward", backwards(b=torch.flipud), TILED),
    "backward has no row sum": (TiledAttention, "backward", backwards(y=torch.zeros_like), TILED),
}  # fmt: skip
HARMLESS: dict[str, tuple[Any, str, Any, str]] = {
    "weights": (Attention, "weights", masks(), ALL),
    "attention": (Attention, "forward", attends(), f"{ALL}, dropout"),
    "block": (gpt.Block, "forward", blocks(), ALL),
    "mlp": (gpt.FeedForward, "forward", partialmethod(mlp), ALL),
    "forward": (GPT, "forward", partialmethod(forward), ALL),
    "backward": (TiledAttention, "backward", backwards(), TILED),
}


@pytest.mark.parametrize(("where", "what", "wrong", "checks"), FAULTS.values(), ids=FAULTS)
def test_a_planted_fault_is_reported(
    where: Any, what: str, wrong: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, wrong)
    for check in checks.split(", "):
        assert CHECKS[check]() > 1e-2, f"{check} is blind"


@pytest.mark.parametrize(("where", "what", "same", "checks"), HARMLESS.values(), ids=HARMLESS)
def test_the_replacement_without_its_fault_is_harmless(
    where: Any, what: str, same: Any, checks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, what, same)
    for check in checks.split(", "):
        assert CHECKS[check]() < TOLERANCE
