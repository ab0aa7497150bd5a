"""The modern GPT: ``gpt.py`` with later improvements.

- Rotary position embeddings on queries and keys (Su et al., 2021), in place of learned positions.
- Norms without weights, also on queries and keys (Henry et al., 2020).
- Squared ReLU (So et al., 2021); linears without bias.
- Output projections and head initialized to zero, so that each block starts as the identity.
- Soft-capped logits (Gemma 2, 2024).
- Optional token shift (Peng et al., 2023): each layer delays one third of the channels by one
  position and another third by two.
- Optional token noise in training: some input characters are random, as in BERT (Devlin et al.,
  2018).

Axes: B batch, T time, S time including cached positions, C channels (n_embd), nh heads,
hs head size, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.models.gpt import TRAINING_ONLY, Attention, check_sizes, positions_from
from nanogpt.models.kv_cache import Cache, LayerCache, ShiftCache

LOGIT_CAP = 15.0
RotaryTables = tuple[Tensor, Tensor]  # cosines and sines, (T, hs / 2) each


@dataclass(frozen=True)
class ModernConfig:
    """Settings of a modern GPT.

    Args:
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: number of attention heads in a block.
        n_embd: width of the residual stream, C; a multiple of ``2 * n_head``.
        dropout: probability of zeroing an activation during training, in [0, 1).
        token_noise: probability of replacing an input character by a random one during training,
            in [0, 1).
        token_shift: whether each layer delays one third of the channels by one position and another
            third by two.

    Raises:
        ValueError: if a size is below 1 or does not divide, or a probability is not in [0, 1).
    """

    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = field(default=0.0, metadata=TRAINING_ONLY)
    token_noise: float = field(default=0.0, metadata=TRAINING_ONLY)
    token_shift: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "block_size", "n_layer", "n_head", "n_embd")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(
                f"n_embd {self.n_embd} must be a multiple of 2 * n_head {self.n_head}: rotary "
                "embeddings rotate pairs of channels"
            )
        for name in ("dropout", "token_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")


def norm(x: Tensor) -> Tensor:
    """Normalize the last axis to mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])  # on a CPU twice as fast as F.rms_norm


def rotary_tables(positions: Tensor, head_size: int, dtype: torch.dtype) -> RotaryTables:
    """Return the cosines and sines for positions (T), (T, hs / 2) each.

    The angle grows with the position, more slowly from pair to pair of channels, so that the
    product of a query and a key depends on their distance only.
    """
    half = head_size // 2
    frequencies = 10_000.0 ** -(torch.arange(half, device=positions.device) / half)
    angles = positions[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


class Rotary(nn.Module):
    """Rotate neighboring pairs of channels by an angle that depends on the position."""

    def forward(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Map (B, nh, T, hs) to the same shape and dtype."""
        cos, sin = tables
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, nh, T, hs / 2) each
        rotated = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
        return rotated.flatten(-2).type_as(x)


class SquaredReLU(nn.Module):
    """max(x, 0)²."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it elementwise."""
        return F.relu(x).square()


def corrupt_tokens(ids: Tensor, probability: float, vocab_size: int) -> Tensor:
    """Replace ids (B, T) by uniform random ones with the given probability."""
    replaced = torch.rand(ids.shape, device=ids.device) < probability
    return torch.where(replaced, torch.randint_like(ids, vocab_size), ids)


def token_shift(x: Tensor, cache: ShiftCache | None = None) -> Tensor:
    """Delay one third of the channels of (B, T, C) by one position and another third by two.

    Positions before the first are zeros. With C of 2 or 4, only the delay by one is used.
    """
    T = x.shape[1]
    padded = F.pad(x, (0, 0, 2, 0)) if cache is None else cache.append(x)  # (B, 2 + T, C)
    thirds = enumerate(padded.chunk(3, dim=-1))
    return torch.cat([third.narrow(1, 2 - late, T) for late, third in thirds], dim=-1)


class ModernAttention(nn.Module):
    """Causal self-attention with rotary embeddings and normalized queries and keys."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.n_head, self.head_size = config.n_head, config.n_embd // config.n_head
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.rotary = Rotary()
        self.attend = Attention(config.dropout)
        self.out_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, tables: RotaryTables, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C), attending to the cached positions as well."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, nh, T, hs) each
        q, k = self.rotary(norm(q), tables), self.rotary(norm(k), tables)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, S, hs) each
        y = self.attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T, C)
        return self.dropout(self.out_proj(y))


class ModernFeedForward(nn.Module):
    """A two-layer perceptron with squared ReLU, four times as wide inside."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.activation = SquaredReLU()
        self.down_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.down_proj(self.activation(self.up_proj(x))))


class ModernBlock(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__()
        self.token_shift = config.token_shift
        self.attn = ModernAttention(config)
        self.mlp = ModernFeedForward(config)

    def forward(self, x: Tensor, tables: RotaryTables, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        shifts = cache.shifts if cache else (None, None)
        x = x + self.attn(self.branch_input(x, shifts[0]), tables, cache)
        return x + self.mlp(self.branch_input(x, shifts[1]))

    def branch_input(self, x: Tensor, cache: ShiftCache | None) -> Tensor:
        """Return the normalized stream (B, T, C), shifted if the config says so."""
        return token_shift(norm(x), cache) if self.token_shift else norm(x)


class ModernGPT(nn.Module):
    """A modern character-level GPT: token ids in, next-token logits out."""

    def __init__(self, vocab_size: int, config: ModernConfig) -> None:
        super().__init__()
        self.vocab_size, self.block_size = vocab_size, config.block_size
        self.token_noise = config.token_noise
        self.head_size = config.n_embd // config.n_head
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(ModernBlock(config) for _ in range(config.n_layer))
        self.lm_head = nn.Linear(config.n_embd, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "down_proj.weight", "lm_head.weight")):
                nn.init.zeros_(parameter)

    def new_cache(self, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty cache for ``forward``; None keeps the model's dtype."""
        return Cache(self.block_size, len(self.blocks), dtype)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to logits (B, T, V), continuing from the cache and extending it."""
        positions = positions_from(cache.length if cache else 0, ids, self.block_size)
        if self.training and self.token_noise:
            ids = corrupt_tokens(ids, self.token_noise, self.vocab_size)
        x = norm(self.token_embedding(ids))  # (B, T, C)
        tables = rotary_tables(positions, self.head_size, x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, tables, cache.layers[i] if cache else None)
        return LOGIT_CAP * torch.tanh(self.lm_head(norm(x)) / LOGIT_CAP)  # (B, T, V)
