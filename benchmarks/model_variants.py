"""What does an ingredient buy? Change it, and train.

python benchmarks/model_variants.py CHANGE fit --config configs/quickstart.yaml

All that follows the change is a command line of cli.py. The models' files have no switches: parts
of models/modern.py and models/shifted.py are replaced here, for one process. Its checkpoints mean
nothing to any other, even where they fit.
"""

import sys
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt import cli
from nanogpt.models import modern, shifted
from nanogpt.models.kv_cache import Cache, LayerCache
from nanogpt.models.modern import ModernGPT, ModernAttention, ModernBlock, ModernFeedForward, RotaryTables
from nanogpt.models.modern import ShiftedBlock

new_model, new_block = ModernGPT.__init__, ModernBlock.__init__
new_feed_forward = ModernFeedForward.__init__
attend, feed_forward = ModernAttention.forward, ModernFeedForward.forward
DROPPED_PATHS = 0.1  # of what a block adds to the stream of a window


# rotary positions: learned ones are added to the characters' embeddings instead, as in gpt.py


@wraps(new_model)  # the same settings
def with_positions(self: Any, *sizes: int, **settings: Any) -> None:
    """Build a model, and embeddings of its positions."""
    new_model(self, *sizes, **settings)
    self.position_embedding = nn.Embedding(self.block_size, self.token_embedding.embedding_dim)


def add_positions(self: Any, ids: Tensor, cache: Cache | None = None) -> Tensor:
    """Map ids (B, T) to logits (B, T, V): the embeddings are found by a model of their own."""
    begin = 0 if cache is None else cache.length
    positions = torch.arange(begin, begin + ids.shape[1], device=ids.device)
    x = modern.norm(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
    for layer, block in enumerate(self.blocks):
        x = block(x, (x, x), None if cache is None else cache.layers[layer])
    cap = modern.LOGIT_CAP
    return cap * torch.tanh(self.lm_head(modern.norm(x)) / cap)  # (B, T, V)


# projections that begin at zero


@wraps(new_model)
def all_as_usual(self: Any, *sizes: int, **settings: Any) -> None:
    """Build a model whose linears all begin as PyTorch's do."""
    new_model(self, *sizes, **settings)
    for name, part in self.named_modules():
        if name.endswith(("projection", "narrow", "lm_head")):
            part.reset_parameters()


# attention


def plain_heads(self: Any, x: Tensor, turns: RotaryTables) -> tuple[Tensor, Tensor, Tensor]:
    """Map (B, T, C) to queries and keys that are not normalised, and values."""
    B, T, _ = x.shape
    heads = self.qkv(x).view(B, T, 3, self.n_head, self.head_size)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
    return modern.turn(q, *turns), modern.turn(k, *turns), v


# feed-forward layers


def relu(self: Any, x: Tensor) -> Tensor:
    """Map (B, T, C) to (B, T, C) by ReLU, not squared."""
    return self.dropout(self.down_proj(F.relu(self.up_proj(x))))


def gelu(self: Any, x: Tensor) -> Tensor:
    """Map (B, T, C) to (B, T, C) by GELU, as in GPT-2."""
    return self.dropout(self.down_proj(F.gelu(self.up_proj(x))))


def new_gated(self: Any, n_embd: int, dropout: float) -> None:
    """Build a gated layer of about as many weights, two thirds as wide (Shazeer, 2020)."""
    new_feed_forward(self, n_embd, dropout)
    wide = 8 * n_embd // 3
    self.up_proj = nn.Linear(n_embd, 2 * wide, bias=False)
    self.narrow = nn.Linear(wide, n_embd, bias=False)


def gated(self: Any, x: Tensor) -> Tensor:
    """Map (B, T, C) to (B, T, C) by SwiGLU."""
    gate, value = self.up_proj(x).chunk(2, dim=-1)
    return self.dropout(self.down_proj(F.silu(gate) * value))


# norms


def rms_norm(x: Tensor) -> Tensor:
    """Divide the last axis by its root mean square."""
    return F.rms_norm(x.float(), x.shape[-1:])  # in float32, as autocast does layer_norm


def with_norms(self: Any, n_embd: int, n_head: int, dropout: float) -> None:
    """Build a block whose norms have weights and biases, as in gpt.py."""
    new_block(self, n_embd, n_head, dropout)
    self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)


def weigh(self: Any, x: Tensor, turns: RotaryTables, cache: LayerCache | None = None) -> Tensor:
    """Map (B, T, C) to (B, T, C), with such norms."""
    x = x + self.attn(self.ln_1(x), turns, cache)
    return x + self.mlp(self.ln_2(x))


def weigh_and_shift(self: Any, x: Tensor, turns: RotaryTables, cache: LayerCache | None = None) -> Tensor:
    """Do so in a block that shifts tokens."""
    of_attn, of_mlp = (None, None) if cache is None else cache.earlier
    x = x + self.attn(shifted.token_shift(self.ln_1(x), of_attn), turns, cache)
    return x + self.mlp(shifted.token_shift(self.ln_2(x), of_mlp))


# noise in training


def kept_paths(y: Tensor, training: bool) -> Tensor:
    """Leave out, in training, what is added to the streams of some windows: (B, T, C)."""
    if not training:
        return y
    kept = torch.rand(len(y), 1, 1, device=y.device) >= DROPPED_PATHS
    return y * kept / (1 - DROPPED_PATHS)


# what stands in for what; the classes are changed in place, so that shifted blocks change too
CHANGES: dict[str, list[tuple[Any, str, object]]] = {
    "rotary": [
        (ModernGPT, "__init__", with_positions),
        (ModernGPT, "forward", add_positions),
        (modern, "turn", lambda x, *turns: x),
    ],
    "qk-norm": [(ModernAttention, "heads", plain_heads)],
    "relu": [(ModernFeedForward, "forward", relu)],
    "gelu": [(ModernFeedForward, "forward", gelu)],
    "swiglu": [(ModernFeedForward, "__init__", new_gated), (ModernFeedForward, "forward", gated)],
    "zero-init": [(ModernGPT, "__init__", all_as_usual)],
    "logit-cap": [(modern, "LOGIT_CAP", 1e4)],  # which no logit comes near
    "weighted-norms": [
        (ModernBlock, "__init__", with_norms),
        (ModernBlock, "forward", weigh),
        (ShiftedBlock, "forward", weigh_and_shift),
    ],
    "rms-norm": [(modern, "norm", rms_norm), (shifted, "norm", rms_norm)],
    "stochastic-depth": [
        (ModernAttention, "forward", lambda s, *a: kept_paths(attend(s, *a), s.training)),
        (ModernFeedForward, "forward", lambda s, x: kept_paths(feed_forward(s, x), s.training)),
    ],
}


def change(name: str) -> None:
    """Build every modern GPT of this process with a change."""
    for owner, part, replacement in CHANGES[name]:
        setattr(owner, part, replacement)


def main() -> int:
    """Make the change, and run the command line."""
    if sys.argv[1:2] and sys.argv[1] in CHANGES:
        change(sys.argv[1])
        return cli.main(sys.argv[2:])
    print(f"{__doc__}\nCHANGE is one of {', '.join(CHANGES)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
