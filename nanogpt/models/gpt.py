"""The GPT: a pre-norm, decoder-only transformer over characters.

Read it bottom up: attention (communication), feed-forward (computation), a block of both,
and the model. It is the lecture's network, with the heads of a layer computed together.

Axes: B batch, T time, C channels (n_embd), nh heads, hs head size, V vocabulary.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.models.attention import causal_attention
from nanogpt.models.cache import Cache, LayerCache
from nanogpt.models.dropout import Dropout


class CausalSelfAttention(nn.Module):
    """Every position gathers, by content, from itself and the positions before it.

    Source: "Attention Is All You Need" (Vaswani et al., 2017), section 3.2. Queries, keys and
    values have no bias; dropout acts on the attention weights and after the projection.
    """

    def __init__(self, n_embd: int, n_head: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.n_head, self.head_size = n_head, head_size
        self.query_key_value = nn.Linear(n_embd, 3 * n_head * head_size, bias=False)
        self.projection = nn.Linear(n_head * head_size, n_embd)
        self.dropout = Dropout(dropout)

    def heads(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to queries, keys and values, (3, B, nh, T, hs)."""
        B, T, _ = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.n_head, self.head_size)
        return heads.permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C); with a cache also look back at what it holds."""
        heads = self.heads(x)
        q, k, v = heads.unbind()  # (B, nh, T, hs)
        if cache is not None:
            k, v = cache.append(heads[1:])  # (B, nh, S, hs)
        y = causal_attention(q, k, v, self.dropout.p if self.training else 0.0)  # (B, nh, T, hs)
        y = y.transpose(1, 2).flatten(2)  # (B, T, nh * hs): the heads side by side
        return self.dropout(self.projection(y))  # (B, T, C)


class FeedForward(nn.Module):
    """Every position thinks by itself on what it gathered: widen four times, ReLU, narrow."""

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.widen = nn.Linear(n_embd, 4 * n_embd)
        self.narrow = nn.Linear(4 * n_embd, n_embd)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.narrow(F.relu(self.widen(x))))


class Block(nn.Module):
    """Communication, then computation, each added to the residual stream.

    Pre-norm: the LayerNorm stands inside each branch, so the stream itself is never normalised
    and gradients run through it unhindered.
    """

    def __init__(self, n_embd: int, n_head: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, head_size, dropout)
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = FeedForward(n_embd, dropout)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """A character-level GPT: ids of characters in, logits of the next character out.

    Args:
        vocab_size: number of distinct characters, V.
        block_size: longest context, in characters.
        n_layer: number of blocks.
        n_head: attention heads in a block.
        n_embd: width of the residual stream, C.
        head_size: width of a head; by default ``n_embd // n_head``. Heads concatenate to
            ``n_head * head_size``, which need not be ``n_embd``.
        dropout: probability that an activation is zeroed in training, in [0, 1).
        init: ``default`` leaves PyTorch's initialisation (embeddings N(0, 1), linears uniform in
            ±1/sqrt(fan-in)), with which the reference was trained; ``normal`` draws embeddings
            and linear weights from N(0, 0.02) and zeroes biases, as GPT-2 does.

    Raises:
        ValueError: if a size is not positive or ``dropout`` lies outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        n_layer: int = 6,
        n_head: int = 6,
        n_embd: int = 384,
        head_size: int | None = None,
        dropout: float = 0.0,
        init: Literal["default", "normal"] = "default",
    ) -> None:
        super().__init__()
        if head_size is None:
            head_size = n_embd // max(n_head, 1)
        sizes = {"vocab_size": vocab_size, "block_size": block_size, "n_layer": n_layer}
        sizes |= {"n_head": n_head, "n_embd": n_embd, "head_size": head_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), not {dropout}")
        if init not in ("default", "normal"):
            raise ValueError(f"init must be default or normal, not {init}")
        self.vocab_size, self.block_size = vocab_size, block_size
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(
            Block(n_embd, n_head, head_size, dropout) for _ in range(n_layer)
        )
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        if init == "normal":
            self.apply(init_normal)

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
        positions = torch.arange(begin, end, device=ids.device)  # (T)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layers[layer])
        return self.lm_head(self.ln_f(x))  # (B, T, V)


def init_normal(module: nn.Module) -> None:
    """Draw a linear's or embedding's weight from N(0, 0.02) and zero its bias (GPT-2)."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
