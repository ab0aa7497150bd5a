"""What does an ingredient of models/shifted.py's GPT buy? Take it away, and train.

python benchmarks/without.py INGREDIENT fit --config configs/quickstart.yaml

All that follows the ingredient is a command line of cli.py. The model's file has no switches:
parts of it are replaced here, for one process. Its checkpoints mean nothing to any other, even
where they fit.
"""

import sys
from functools import wraps
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt import cli
from nanogpt.models import ARCHITECTURES, Shifted, modern, shifted
from nanogpt.models.cache import Cache, LayerCache
from nanogpt.models.modern import ModernAttention, ModernFeedForward, Turns
from nanogpt.models.shifted import ShiftedBlock


class LearnedPositions(Shifted):
    """Positions are embedded, learned and added to the characters' embeddings, as in gpt.py."""

    @wraps(Shifted.__init__)  # the same settings
    def __init__(self, *sizes: int, **settings: int | float) -> None:
        super().__init__(*sizes, **settings)
        self.position_embedding = nn.Embedding(self.block_size, self.token_embedding.embedding_dim)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to next-character logits (B, T, V)."""
        begin = 0 if cache is None else cache.length
        positions = torch.arange(begin, begin + ids.shape[1], device=ids.device)
        x = modern.norm(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, (x, x), None if cache is None else cache.layers[layer])
        cap = modern.LOGIT_CAP
        return cap * torch.tanh(self.lm_head(modern.norm(x)) / cap)  # (B, T, V)


class UsualInit(Shifted):
    """No projection begins at zero: all linears begin as PyTorch's do."""

    @wraps(Shifted.__init__)
    def __init__(self, *sizes: int, **settings: int | float) -> None:
        super().__init__(*sizes, **settings)
        for name, part in self.named_modules():
            if name.endswith(("projection", "narrow", "lm_head")):
                part.reset_parameters()


class PlainAttention(ModernAttention):
    """Queries and keys are not normalised."""

    def heads(self, x: Tensor, turns: Turns) -> tuple[Tensor, Tensor, Tensor]:
        """Map (B, T, C) to queries, keys and values, (B, nh, T, hs) each."""
        B, T, _ = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        return modern.turn(q, *turns), modern.turn(k, *turns), v


class ReLU(ModernFeedForward):
    """ReLU, not squared."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.narrow(F.relu(self.widen(x))))


class GELU(ModernFeedForward):
    """GELU, as in GPT-2."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.dropout(self.narrow(F.gelu(self.widen(x))))


class WeightedNorms(ShiftedBlock):
    """The norms of the blocks have weights and biases, as in gpt.py."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__(n_embd, n_head, dropout)
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x: Tensor, turns: Turns, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        of_attn, of_mlp = (None, None) if cache is None else cache.earlier
        x = x + self.attn(shifted.token_shift(self.ln_1(x), of_attn), turns, cache)
        return x + self.mlp(shifted.token_shift(self.ln_2(x), of_mlp))


# what stands in for which names of modern.py and shifted.py
WITHOUT: dict[str, dict[str, object]] = {
    "rotary": {"Shifted": LearnedPositions, "turn": lambda x, *turns: x},
    "qk-norm": {"ModernAttention": PlainAttention},
    "squared": {"ModernFeedForward": ReLU},
    "squared-relu": {"ModernFeedForward": GELU},
    "zero-init": {"Shifted": UsualInit},
    "logit-cap": {"LOGIT_CAP": 1e4},  # which no logit comes near
    "weightless-norms": {"ShiftedBlock": WeightedNorms},
}


def place_of(name: str) -> ModuleType:
    """Return the module whose name is replaced."""
    return shifted if name in ("Shifted", "ShiftedBlock") else modern


def take_away(ingredient: str) -> None:
    """Build every shifted GPT of this process without an ingredient."""
    for name, replacement in WITHOUT[ingredient].items():
        setattr(place_of(name), name, replacement)
    ARCHITECTURES["shifted"] = shifted.Shifted


def main() -> int:
    """Take the ingredient away, and run the command line."""
    if sys.argv[1:2] and sys.argv[1] in WITHOUT:
        take_away(sys.argv[1])
        return cli.main(sys.argv[2:])
    print(f"{__doc__}\nINGREDIENT is one of {', '.join(WITHOUT)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
