"""Run the command line with variants of the modern GPT as further architectures.

python benchmarks/model_variants.py fit --config configs/quickstart.yaml
    --model.architecture modern_relu

Each variant changes one ingredient of ``ModernGPT`` and takes the same settings, ``token_shift``
included. The options are those of cli.py, which cannot read the variants' checkpoints.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.commands.main import main
from nanogpt.models import ARCHITECTURES, ModernConfig, ModernGPT
from nanogpt.models.gpt import positions_from
from nanogpt.models.kv_cache import Cache, LayerCache
from nanogpt.models.modern import (
    LOGIT_CAP,
    ModernAttention,
    ModernBlock,
    RotaryTables,
    corrupt_tokens,
    norm,
    rotary_tables,
    token_shift,
)

DROPPED_PATHS = 0.1  # probability that stochastic depth drops a layer's output for a window

# ModernGPT with all of its parts as modules


class Norm(nn.Module):
    """``norm`` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis to mean 0 and variance 1."""
        return norm(x)


class LogitCap(nn.Module):
    """The soft cap on the logits."""

    def forward(self, logits: Tensor) -> Tensor:
        """Map (B, T, V) to (B, T, V)."""
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


class NoPositions(nn.Module):
    """The place of learned position embeddings, which ``ModernGPT`` does not have."""

    def forward(self, positions: Tensor) -> float:
        """Return zero."""
        return 0.0


class ModularAttention(ModernAttention):
    """``ModernAttention`` with a module for the norm of queries and keys."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config)
        self.qk_norm = Norm()

    def forward(self, x: Tensor, tables: RotaryTables, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, self.head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # (B, nh, T, hs) each
        q, k = self.rotary(self.qk_norm(q), tables), self.rotary(self.qk_norm(k), tables)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, nh, S, hs) each
        y = self.attend(q, k, v).transpose(1, 2).flatten(2)  # (B, T, C)
        return self.dropout(self.out_proj(y))


class ModularBlock(ModernBlock):
    """``ModernBlock`` with modules for its norms."""

    def __init__(self, config: ModernConfig) -> None:
        super().__init__(config)
        self.attn = ModularAttention(config)
        self.ln_1, self.ln_2 = Norm(), Norm()

    def forward(self, x: Tensor, tables: RotaryTables, cache: LayerCache | None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        shifts = cache.shifts if cache else (None, None)
        y = self.ln_1(x)
        x = x + self.attn(token_shift(y, shifts[0]) if self.token_shift else y, tables, cache)
        y = self.ln_2(x)
        return x + self.mlp(token_shift(y, shifts[1]) if self.token_shift else y)


class ModularGPT(ModernGPT):
    """``ModernGPT`` with modules for its norms, positions and logit cap."""

    def __init__(self, vocab_size: int, config: ModernConfig) -> None:
        super().__init__(vocab_size, config)
        weights = self.state_dict()
        self.blocks = nn.ModuleList(ModularBlock(config) for _ in range(config.n_layer))
        self.load_state_dict(weights)  # so that a seed gives the weights of ModernGPT
        self.position_embedding: nn.Module = NoPositions()
        self.norm, self.ln_f, self.logit_cap = Norm(), Norm(), LogitCap()

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Map ids (B, T) to logits (B, T, V), continuing from the cache and extending it."""
        positions = positions_from(cache.length if cache else 0, ids, self.block_size)
        if self.training and self.token_noise:
            ids = corrupt_tokens(ids, self.token_noise, self.vocab_size)
        x = self.norm(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        tables = rotary_tables(positions, self.head_size, x.dtype)
        for i, block in enumerate(self.blocks):
            x = block(x, tables, cache.layers[i] if cache else None)
        return self.logit_cap(self.lm_head(self.ln_f(x)))  # (B, T, V)


# modules of the variants


class NoRotation(nn.Module):
    """The place of ``Rotary`` in a model with learned positions."""

    def forward(self, x: Tensor, tables: RotaryTables) -> Tensor:
        """Return the input."""
        return x


class SwiGLU(nn.Module):
    """The product of one half of the channels and the SiLU of the other (Shazeer, 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, 2 * width) to (B, T, width)."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value


class RMSNorm(nn.Module):
    """A norm without weights or mean (Zhang and Sennrich, 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        """Divide the last axis by its root mean square."""
        return F.rms_norm(x.float(), x.shape[-1:])  # float32, as for layer_norm under autocast


class DropPath(nn.Module):
    """Stochastic depth: zero a layer's output for some windows in training (Huang et al., 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= DROPPED_PATHS
        return x * kept / (1 - DROPPED_PATHS)


# what each variant changes


def replace(model: ModularGPT, name: str, make: Callable[[], nn.Module]) -> None:
    """Replace every submodule of the given name."""
    for parent in list(model.modules()):
        if name in dict(parent.named_children()):
            setattr(parent, name, make())


def use_learned_positions(model: ModularGPT) -> None:
    """Replace rotary embeddings by learned position embeddings, as in gpt.py."""
    n_embd = model.token_embedding.embedding_dim
    model.position_embedding = nn.Embedding(model.block_size, n_embd)
    replace(model, "rotary", NoRotation)


def use_swiglu(model: ModularGPT) -> None:
    """Replace squared ReLU by SwiGLU, two thirds as wide: about the same number of weights."""
    n_embd = model.token_embedding.embedding_dim
    width = 8 * n_embd // 3
    replace(model, "up_proj", lambda: nn.Linear(n_embd, 2 * width, bias=False))
    replace(model, "activation", SwiGLU)
    replace(model, "down_proj", lambda: nn.Linear(width, n_embd, bias=False))
    for block in model.blocks:
        nn.init.zeros_(block.mlp.down_proj.weight)


def use_default_init(model: ModularGPT) -> None:
    """Initialize the layers that start at zero as PyTorch does."""
    for name, module in model.named_modules():
        if name.endswith(("out_proj", "down_proj", "lm_head")):
            module.reset_parameters()


def use_weighted_norms(model: ModularGPT) -> None:
    """Give the norms of the blocks weights and biases, as in gpt.py."""
    for name in ("ln_1", "ln_2"):
        replace(model, name, lambda: nn.LayerNorm(model.token_embedding.embedding_dim))


def use_rms_norm(model: ModularGPT) -> None:
    """Replace every norm by RMSNorm."""
    for name in ("norm", "qk_norm", "ln_1", "ln_2", "ln_f"):
        replace(model, name, RMSNorm)


def use_stochastic_depth(model: ModularGPT) -> None:
    """Drop the outputs of attention and feed-forward layers at random in training."""
    for block in model.blocks:
        for layer in (block.attn, block.mlp):
            layer.dropout = nn.Sequential(layer.dropout, DropPath())


CHANGES: dict[str, Callable[[ModularGPT], None]] = {
    "modern_learned_positions": use_learned_positions,
    "modern_without_qk_norm": lambda model: replace(model, "qk_norm", nn.Identity),
    "modern_relu": lambda model: replace(model, "activation", nn.ReLU),
    "modern_gelu": lambda model: replace(model, "activation", nn.GELU),
    "modern_swiglu": use_swiglu,
    "modern_default_init": use_default_init,
    "modern_without_logit_cap": lambda model: replace(model, "logit_cap", nn.Identity),
    "modern_weighted_norms": use_weighted_norms,
    "modern_rms_norm": use_rms_norm,
    "modern_stochastic_depth": use_stochastic_depth,
}


def build_variant(name: str, vocab_size: int, config: ModernConfig) -> ModularGPT:
    """Build a variant by its architecture's name."""
    model = ModularGPT(vocab_size, config)
    CHANGES[name](model)
    return model


def register() -> None:
    """Add the variants to the architectures of this process."""
    ARCHITECTURES.update({name: (ModernConfig, partial(build_variant, name)) for name in CHANGES})


if __name__ == "__main__":
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\nvariants: {', '.join(CHANGES)}")
        sys.exit(0)
    register()
    sys.exit(main(sys.argv[1:]))
