"""The GPT: a pre-norm, decoder-only transformer over characters.

Read it from top to bottom: attention (tokens communicate), feed-forward (each token computes), the
block of both, the model. ``fit`` and ``load`` replace some modules by those of ``nanogpt.kernels``.

Axes: B batch, T time, S time with the cache, C channels, nh heads, hs head size, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt.models.kv_cache import Cache, LayerCache

TRAINING_ONLY = {"training_only": True}  # marks a setting that trained weights do not depend on


@dataclass(frozen=True)
class GPTConfig:
    """Settings of a GPT.

    Args:
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: number of attention heads in a block.
        n_embd: width of the residual stream, C.
        head_size: width of a head; by default ``n_embd // n_head``.
        dropout: probability of zeroing an activation during training, in [0, 1).
        init: ``default``, PyTorch's, as in the reference; or ``normal``, N(0, 0.02) as in GPT-2.

    Raises:
        ValueError: if a size is below 1, ``dropout`` is outside [0, 1) or ``init`` is unknown.
    """

    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    head_size: int | None = None
    dropout: float = field(default=0.0, metadata=TRAINING_ONLY)
    init: Literal["default", "normal"] = field(default="default", metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        if self.head_size is None:  # a frozen dataclass has no other way to set it
            object.__setattr__(self, "head_size", self.n_embd // max(self.n_head, 1))
        check_sizes(self, "block_size", "n_layer", "n_head", "n_embd", "head_size")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.init not in ("default", "normal"):
            raise ValueError(f"init must be default or normal, not {self.init!r}")


class Attention(nn.Module):
    """Scaled dot-product attention: softmax(q kᵀ / sqrt(hs)) v, masked to the past."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Map queries (B, nh, T, hs) and keys (B, nh, S, hs) to weights (B, nh, T, S)."""
        T, S = q.shape[-2], k.shape[-2]  # queries are at the last T of S positions
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, nh, T, S)
        future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
        return F.softmax(scores.masked_fill(future, -math.inf), dim=-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the weighted mean of the values, (B, nh, T, hs)."""
        return self.dropout(self.weights(q, k)) @ v


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al., 2017, section 3.2). q, k and v have no bias."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        assert config.head_size is not None
        self.n_head, self.head_size = config.n_head, config.head_size
        self.qkv = nn.Linear(config.n_embd, 3 * self.n_head * self.head_size, bias=False)
        self.attend = Attention(config.dropout)
        self.out_proj = nn.Linear(self.n_head * self.head_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), attending to the cached positions as well."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, nh, T, hs) each
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, S, hs) each
        y = self.attend(q, k, v)  # (B, nh, T, hs)
        y = y.transpose(1, 2).flatten(2)  # (B, T, nh * hs): the heads side by side
        return self.dropout(self.out_proj(y))  # (B, T, C)


class FeedForward(nn.Module):
    """A two-layer perceptron applied at each position, four times as wide inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.down_proj(F.relu(self.up_proj(x))))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream (pre-norm)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A character-level GPT: token ids in, next-token logits out."""

    def __init__(self, vocab_size: int, config: GPTConfig) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, config.block_size
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, vocab_size)
        if config.init == "normal":
            self.apply(init_normal)

    def new_cache(self, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty cache for ``forward``; None keeps the model's dtype."""
        return Cache(self.block_size, len(self.blocks), dtype)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to logits (B, T, V), continuing from the cache and extending it.

        Raises:
            ValueError: if cache and ids together exceed ``block_size``.
        """
        positions = positions_from(cache.length if cache else 0, ids, self.block_size)  # (T)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, cache.layers[i] if cache else None)
        return self.lm_head(self.ln_f(x))  # (B, T, V)


def positions_from(start: int, ids: Tensor, block_size: int) -> Tensor:
    """Return the positions of ids (B, T), (T); raise ValueError beyond ``block_size``."""
    if (end := start + ids.shape[1]) > block_size:
        raise ValueError(f"{end} characters exceed block_size {block_size}: pass the last ones")
    return torch.arange(start, end, device=ids.device)


def init_normal(module: nn.Module) -> None:
    """Draw the weight of a linear or embedding from N(0, 0.02) and zero its bias."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def check_sizes(config: object, *names: str) -> None:
    """Raise ValueError if one of a config's sizes is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(config, name)}")
