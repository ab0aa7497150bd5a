"""A GPT of today: the same idea as ``gpt.py``, with what has been found out since.

What is different, and where it comes from:

- positions turn queries and keys, and add nothing (rotary embeddings, Su et al., 2021);
- norms have no weights, and stand also on queries and keys (Henry et al., 2020);
- the feed-forward layer squares its ReLU (So et al., 2021); no linear has a bias;
- projections back into the stream, and the head, begin at zero, so that each block begins as the
  identity;
- logits are softly capped (Gemma 2, 2024);
- in training some of the characters that are read may be random ones, as some of BERT's are (Devlin
  et al., 2018).

Axes: B batch, T time, C channels (n_embd), nh heads, hs head size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.models.attention import causal_attention
from nanogpt.models.cache import Cache, LayerCache
from nanogpt.models.dropout import Dropout
from nanogpt.models.elementwise import squared_relu, turn

LOGIT_CAP = 15.0
Turns = tuple[Tensor, Tensor]  # cosines and sines, (T, hs / 2) each


def norm(x: Tensor) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1."""
    return F.layer_norm(x, x.shape[-1:])  # on a CPU twice as fast as F.rms_norm


def rotation(begin: int, end: int, head_size: int, like: Tensor) -> Turns:
    """Return the cosines and sines by which positions turn, (T, hs / 2) each.

    The angles grow with the position, slower from pair to pair, so that the product of a query
    and a key depends on their distance.
    """
    half = head_size // 2
    frequencies = 10_000.0 ** -(torch.arange(half, device=like.device) / half)
    angles = torch.arange(begin, end, device=like.device)[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def with_noise(ids: Tensor, probability: float, vocab_size: int) -> Tensor:
    """Put random characters in the place of some: (B, T) to (B, T)."""
    chosen = torch.rand(ids.shape, device=ids.device) < probability
    return torch.where(chosen, torch.randint_like(ids, vocab_size), ids)


class ModernAttention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.head_size = n_head, n_embd // n_head
        self.query_key_value = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.projection = nn.Linear(n_embd, n_embd, bias=False)
        self.dropout = Dropout(dropout)

    def heads(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, T, C) to queries, keys and values, (B, nh, T, hs) each."""
        B, T, _ = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        return turn(norm(q), *turns), turn(norm(k), *turns), v

    def forward(self, x: Tensor, turns: Turns, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache also look back at what it holds."""
        q, k, v = self.heads(x, turns)
        if cache is not None:
            k, v = cache.append(torch.stack([k, v]))  # (B, nh, S, hs)
        y = causal_attention(q, k, v, self.dropout.p if self.training else 0.0)  # (B, nh, T, hs)
        return self.dropout(self.projection(y.transpose(1, 2).flatten(2)))  # (B, T, C)


class ModernFeedForward(nn.Module):
    """Widen four times, square what is positive, narrow."""

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.widen = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.narrow = nn.Linear(4 * n_embd, n_embd, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.narrow(squared_relu(self.widen(x))))


class ModernBlock(nn.Module):
    """Communication, then computation, each added to the residual stream."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.attn = ModernAttention(n_embd, n_head, dropout)
        self.mlp = ModernFeedForward(n_embd, dropout)

    def forward(self, x: Tensor, turns: Turns, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(norm(x), turns, cache)
        return x + self.mlp(norm(x))


class Modern(nn.Module):
    """A modern character-level GPT: ids of characters in, logits of the next character out.

    Args:
        vocab_size: number of distinct characters, V.
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: attention heads in a block.
        n_embd: width of the residual stream, C: a multiple of 2 * n_head.
        dropout: probability that an activation is zeroed in training, in [0, 1).
        noise: probability that a character is read as a random one in training, in [0, 1).

    Raises:
        ValueError: if a size is not positive or does not divide, or a probability is not in [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        n_layer: int = 6,
        n_head: int = 6,
        n_embd: int = 384,
        dropout: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "block_size": block_size, "n_layer": n_layer}
        for name, size in (sizes | {"n_head": n_head, "n_embd": n_embd}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if n_embd % (2 * n_head):
            raise ValueError(
                f"n_embd {n_embd} must be a multiple of 2 x n_head {n_head}: rotary positions "
                "turn the channels of a head in pairs"
            )
        for name, probability in (("dropout", dropout), ("noise", noise)):
            if not 0 <= probability < 1:
                raise ValueError(f"{name} must lie in [0, 1), not {probability}")
        self.vocab_size, self.block_size, self.noise = vocab_size, block_size, noise
        self.head_size = n_embd // n_head
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        blocks = [self.new_block(n_embd, n_head, dropout) for _ in range(n_layer)]
        self.blocks = nn.ModuleList(blocks)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith(("projection.weight", "narrow.weight", "lm_head.weight")):
                nn.init.zeros_(parameter)

    def new_block(self, n_embd: int, n_head: int, dropout: float) -> ModernBlock:
        """Return a block; a variant of the model returns another kind."""
        return ModernBlock(n_embd, n_head, dropout)

    def new_cache(self, dtype: torch.dtype | None = None) -> Cache:
        """Return an empty cache for ``forward``, of the model's dtype or of another."""
        return Cache(self.block_size, len(self.blocks), dtype)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V).

        With a cache, ``ids`` go on where it ends, and are added to it. All together may be at
        most ``block_size`` long.
        """
        begin = 0 if cache is None else cache.length
        end = begin + ids.shape[1]
        if end > self.block_size:
            raise ValueError(
                f"{end} characters are more than block_size, {self.block_size}: "
                f"give the model the last {self.block_size}"
            )
        if self.training and self.noise:
            ids = with_noise(ids, self.noise, self.vocab_size)
        x = norm(self.token_embedding(ids))  # (B, T, C)
        turns = rotation(begin, end, self.head_size, x)
        for layer, block in enumerate(self.blocks):
            x = block(x, turns, None if cache is None else cache.layers[layer])
        return LOGIT_CAP * torch.tanh(self.lm_head(norm(x)) / LOGIT_CAP)  # (B, T, V)
