"""Independent implementations of the models, and functions that measure how far a model is off.

They share a model's parameters and the random bits of its dropout, and no other code. Weights are
larger than those of a trained model, all sizes differ and everything is float64, so that any fault
shows.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from nanogpt import kernels
from nanogpt.kernels.dropout import random_bits
from nanogpt.models import GPT, Model, build_model

TOLERANCE = 1e-10
DIVIDING = {"vocab_size": 17, "block_size": 13, "n_layer": 2, "n_head": 3, "n_embd": 12}  # hs 4
RAGGED = {**DIVIDING, "n_embd": 14, "head_size": 6}  # heads concatenate to 18, not to 14
STAGES = [
    ["mean"],
    ["mean", "feed_forward"],
    ["mean", "feed_forward", "residual", "norm"],
    ["attention"],
    ["attention", "norm"],
    ["attention", "feed_forward"],
    ["attention", "feed_forward", "norm"],
    ["attention", "feed_forward", "residual"],
    ["attention", "feed_forward", "residual", "norm"],
]
B, T = 5, 11

Module = TypeVar("Module", bound=nn.Module)
Oracle = Callable[[GPT, Tensor], Tensor]


def randomize(model: Module) -> Module:
    """Convert a model to float64 and redraw its weights, linears at 1.5/sqrt(fan-in)."""
    torch.manual_seed(1)
    for module in model.double().modules():
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            nn.init.normal_(module.weight)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=1.5 / math.sqrt(module.in_features))
        if isinstance(module, nn.LayerNorm):
            nn.init.normal_(module.weight, mean=1, std=0.5)
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)
    return model


def random_gpt(settings: dict[str, int], dropout: float = 0.0, installed: bool = False) -> GPT:
    """Return a GPT, with or without the fast kernels."""
    model = randomize(build_model("gpt", **settings, dropout=dropout))
    assert isinstance(model, GPT)
    return kernels.install(model) if installed else model


def random_models(block_size: int) -> dict[str, Model]:
    """Return a model of each kind, by name, in evaluation mode."""
    size = {**DIVIDING, "block_size": block_size}
    models = {"gpt": build_model("gpt", **size)}
    models["ragged"] = build_model("gpt", **{**RAGGED, "block_size": block_size})
    models |= {" ".join(parts): build_model("ablated_gpt", **size, parts=parts) for parts in STAGES}
    models["sinusoidal"] = build_model("ablated_gpt", **size, positions="sinusoidal")
    models["modern"] = build_model("modern", **size)
    models["token shift"] = build_model("modern", **size, token_shift=True)
    models["bigram"] = build_model("bigram", size["vocab_size"], block_size=block_size)
    return {name: randomize(model).eval().requires_grad_(False) for name, model in models.items()}


def some_ids(model: GPT) -> Tensor:
    return torch.randint(model.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))


def torch_logits(model: GPT, ids: Tensor) -> Tensor:
    """Compute a GPT's logits with PyTorch's own transformer layers, which need nh * hs = C."""
    C = model.token_embedding.embedding_dim
    x = model.token_embedding.weight[ids] + model.position_embedding.weight[: ids.shape[1]]
    future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(
            C, block.attn.n_head, 4 * C, 0, activation="relu", batch_first=True, norm_first=True
        )
        weights = {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": torch.zeros(3 * C, dtype=x.dtype),
        }
        parts = {"self_attn.out_proj": block.attn.out_proj, "norm1": block.ln_1}
        parts |= {"norm2": block.ln_2, "linear1": block.mlp.up_proj, "linear2": block.mlp.down_proj}
        for name, part in parts.items():
            weights |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
        x = functional_call(layer, weights, (x, future), strict=True)
    x = F.layer_norm(x, (C,), model.ln_f.weight, model.ln_f.bias)
    return F.linear(x, model.lm_head.weight, model.lm_head.bias)


def keep_factor(shape: tuple[int, ...], p: float) -> Tensor:
    """Return the factors of ``FastDropout``: 0 for the lowest 16-bit values, else a constant."""
    if p == 0:
        return torch.ones(shape, dtype=torch.float64)
    dropped = round(p * 65536)
    kept = random_bits(math.prod(shape)).view(shape).double() + 32768 >= dropped
    return kept.double() * (65536 / (65536 - dropped))


def plain_keep_factor(shape: tuple[int, ...], p: float) -> Tensor:
    """Return the factors of ``nn.Dropout``."""
    return F.dropout(torch.ones(shape, dtype=torch.float64), p)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, factor: Tensor) -> Tensor:
    """Attend one head and position at a time; ``factor`` (B, nh, T, T) is that of the dropout."""
    y = []
    for h, t in product(range(q.shape[1]), range(q.shape[2])):
        scores = torch.einsum("bsi,bi->bs", k[:, h, : t + 1], q[:, h, t]) / math.sqrt(q.shape[3])
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True) * factor[:, h, t, : t + 1]
        y.append(torch.einsum("bs,bsi->bi", weights, v[:, h, : t + 1]))
    return torch.stack(y, dim=1).view(v.shape)


def naive_logits(
    model: GPT, ids: Tensor, p: float = 0.0, keep: Callable[..., Tensor] = plain_keep_factor
) -> Tensor:
    """Compute a GPT's logits with matrix products and loops, for any head size.

    ``keep`` returns the dropout's factors of a shape, in the order in which the model draws them.
    """
    w = dict(model.named_parameters())
    nh, hs = model.blocks[0].attn.n_head, model.blocks[0].attn.head_size

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["token_embedding.weight"][ids] + w["position_embedding.weight"][: ids.shape[1]]
    for block in (f"blocks.{i}" for i in range(len(model.blocks))):
        normed = norm(x, f"{block}.ln_1")
        q, k, v = (
            torch.stack([normed @ head.T for head in matrix.split(hs)], dim=1)
            for matrix in w[f"{block}.attn.qkv.weight"].chunk(3)
        )
        heads = naive_attention(q, k, v, keep((B, nh, ids.shape[1], ids.shape[1]), p))
        joined = torch.cat([heads[:, h] for h in range(nh)], dim=-1)
        x = x + (y := linear(joined, f"{block}.attn.out_proj")) * keep(y.shape, p)
        hidden = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.up_proj").clamp(min=0)
        x = x + (y := linear(hidden, f"{block}.mlp.down_proj")) * keep(y.shape, p)
    return linear(norm(x, "ln_f"), "lm_head")


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def parity_error(model: GPT, oracle: Oracle) -> float:
    """Return the largest difference of a model from an oracle, in logits and gradients."""
    ids, results = some_ids(model), []
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for logits_of in (model, lambda ids: oracle(model, ids)):
        torch.manual_seed(3)  # the dropout's bits
        logits = logits_of(ids)
        direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(4)).double()
        gradients = torch.autograd.grad((logits * direction).sum(), learned, materialize_grads=True)
        results.append([logits, *gradients])
    return largest_difference(*results)


def influence(model: GPT) -> Tensor:
    """Return (T, T): the largest gradient of the logits at t in the embedding at s."""
    ids = some_ids(model)
    x = model.token_embedding(ids).detach().requires_grad_()
    hook = model.token_embedding.register_forward_hook(lambda *_: x)
    logits = model(ids)
    hook.remove()
    direction = torch.randn(model.vocab_size, generator=torch.Generator().manual_seed(5)).double()
    rows = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (logits @ direction).T)
    return torch.stack([row.abs().amax((0, 2)) for row in rows])


def causality_violations(model: GPT) -> int:
    """Count the pairs (t, s) where t depends on a later s, or not on an earlier one."""
    reached = influence(model) != 0
    return int((reached != torch.ones_like(reached).tril()).sum())


def attention_error(
    attention: Callable[..., Tensor],
    batch: int,
    n_head: int,
    p: float,
    drawn: Callable[[tuple[int, ...], float], Tensor] = keep_factor,
) -> float:
    """Return the largest difference from ``naive_attention``, in output and gradients.

    Args:
        attention: of q, k and v (batch, n_head, 7, 3) and a dropout probability.
        batch: number of texts.
        n_head: number of heads.
        p: dropout probability.
        drawn: returns the dropout's factors of a shape, in the order in which they are drawn.
    """
    torch.manual_seed(6)
    q, k, v, dy = torch.randn(4, batch, n_head, 7, 3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (2 * q, 2 * k, v.clone())]
    results = []
    for ours in (True, False):
        torch.manual_seed(7)
        y = (
            attention(*leaves, p)
            if ours
            else naive_attention(*leaves, drawn((batch, n_head, 7, 7), p))
        )
        results.append([y, *torch.autograd.grad(y, leaves, dy)])
    return largest_difference(*results)
