"""The textbook's training loop, to compare with: a module for each head, batches made in Python.

python benchmarks/baseline.py bigram|quickstart|gpt_small|gpt10m [--steps N] [--autocast]

Written after the description of the reference system, as plainly as one teaches it. All random
numbers come from the one global generator: the weights from the bottom up, then at each evaluation
200 batches of the train split and 200 of the val split, and only then the step's own batch. With
that order the bigram's evaluations on a CPU equal the reference's to the last digit (see
tests/test_baseline.py); its GPTs ran on a GPU and cannot be held against it so closely. Of a
config it takes sizes, dropout, learning rate and steps; weights start as PyTorch makes them and
the learning rate is constant, whatever the config says.

Axes: B batch, T time, C channels (n_embd), nh heads, hs head size, V vocabulary.
"""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nanogpt.text.corpora import load_corpus

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = ("bigram", "quickstart", "gpt_small", "gpt10m")
SEED = 1337
EVALUATION_BATCHES = 200  # of each split


@dataclass(frozen=True)
class Sizes:
    """What of a config matters here."""

    architecture: str
    batch_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    learning_rate: float
    max_steps: int
    val_check_interval: int

    @classmethod
    def of(cls, path: Path) -> "Sizes":
        """Read the sizes of a config."""
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model, trainer = config["model"], config["trainer"]
        return cls(
            architecture=model["architecture"],
            batch_size=config["data"]["batch_size"],
            block_size=model["block_size"],
            n_layer=model.get("n_layer", 0),
            n_head=model.get("n_head", 0),
            n_embd=model.get("n_embd", 0),
            dropout=model.get("dropout", 0.0),
            learning_rate=model["learning_rate"],
            max_steps=trainer["max_steps"],
            val_check_interval=trainer["val_check_interval"],
        )


def config_path(name: str) -> Path:
    """Return the config of a name, or the file that it is."""
    return Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"


class Head(nn.Module):
    """One head of self-attention: looks at the past, by content."""

    def __init__(self, sizes: Sizes, head_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(sizes.n_embd, head_size, bias=False)
        self.query = nn.Linear(sizes.n_embd, head_size, bias=False)
        self.value = nn.Linear(sizes.n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.ones(sizes.block_size, sizes.block_size).tril())
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, hs)."""
        T = x.shape[1]
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, T, hs)
        scores = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5  # (B, T, T)
        scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, dim=-1)) @ v


class MultiHeadAttention(nn.Module):
    """Communication: several heads, one after the other, joined and projected."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        head_size = sizes.n_embd // sizes.n_head
        self.heads = nn.ModuleList(Head(sizes, head_size) for _ in range(sizes.n_head))
        self.out_proj = nn.Linear(sizes.n_head * head_size, sizes.n_embd)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        joined = torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, nh * hs)
        return self.dropout(self.out_proj(joined))


class FeedForward(nn.Module):
    """Computation: every position by itself."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(sizes.n_embd, 4 * sizes.n_embd),
            nn.ReLU(),
            nn.Linear(4 * sizes.n_embd, sizes.n_embd),
            nn.Dropout(sizes.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        return self.net(x)


class Block(nn.Module):
    """Communication, then computation, each on a normalised copy of the residual stream."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attn, self.mlp = MultiHeadAttention(sizes), FeedForward(sizes)
        self.ln_1, self.ln_2 = nn.LayerNorm(sizes.n_embd), nn.LayerNorm(sizes.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The textbook's GPT: ids (B, T) in, logits (B, T, V) out."""

    def __init__(self, vocab_size: int, sizes: Sizes) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, sizes.n_embd)
        self.position_embedding = nn.Embedding(sizes.block_size, sizes.n_embd)
        self.blocks = nn.Sequential(*(Block(sizes) for _ in range(sizes.n_layer)))
        self.ln_f = nn.LayerNorm(sizes.n_embd)
        self.lm_head = nn.Linear(sizes.n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (B, T) to logits (B, T, V)."""
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        return self.lm_head(self.ln_f(self.blocks(x)))


class Training:
    """The loop itself, and all that it works on; making it seeds the global generator.

    Args:
        sizes: of the model and the run.
        device: where the model lies; the text lies with the CPU, and each batch travels.
        autocast: whether to compute in bf16 what PyTorch's autocast would.
        compiled: whether to hand the model to ``torch.compile``.
    """

    def __init__(
        self, sizes: Sizes, device: str = "cpu", autocast: bool = False, compiled: bool = False
    ) -> None:
        self.sizes, self.device, self.autocast = sizes, device, autocast
        torch.manual_seed(SEED)
        text = load_corpus().text
        characters = sorted(set(text))
        id_of = {character: i for i, character in enumerate(characters)}
        ids = torch.tensor([id_of[character] for character in text])
        n_train = int(0.9 * len(ids))
        self.splits = {"train": ids[:n_train], "val": ids[n_train:]}
        n = len(characters)
        bigram = sizes.architecture == "bigram"
        self.model = (nn.Embedding(n, n) if bigram else GPT(n, sizes)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=sizes.learning_rate)
        if compiled:
            self.model.compile()

    def batch(self, split: str) -> tuple[Tensor, Tensor]:
        """Draw a batch: inputs and targets, (B, T) each."""
        ids, T = self.splits[split], self.sizes.block_size
        starts = torch.randint(len(ids) - T, (self.sizes.batch_size,))
        inputs = torch.stack([ids[i : i + T] for i in starts])
        targets = torch.stack([ids[i + 1 : i + T + 1] for i in starts])
        return inputs.to(self.device), targets.to(self.device)

    def loss(self, split: str) -> Tensor:
        """Return the mean loss of a new batch, in nats per character."""
        inputs, targets = self.batch(split)
        with self._precision():
            logits = self.model(inputs)  # (B, T, V)
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def step(self) -> None:
        """Train on one batch."""
        loss = self.loss("train")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Return the mean loss over 200 random batches of the train split, and of the val split."""
        self.model.eval()
        means = []
        for split in ("train", "val"):
            losses = torch.zeros(EVALUATION_BATCHES)
            for i in range(EVALUATION_BATCHES):
                losses[i] = self.loss(split).item()
            means.append(losses.mean().item())
        self.model.train()
        return means[0], means[1]

    def rows(self, steps: int) -> Iterator[tuple[int, float, float]]:
        """Train for some steps; yield step, train and val loss at each evaluation."""
        for step in range(steps):
            if step % self.sizes.val_check_interval == 0:
                yield (step, *self.evaluate())
            self.step()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()


def main() -> None:
    """Train, and print the evaluations."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help=f"one of {', '.join(NAMES)}, or a config's path")
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--autocast", action="store_true", help="compute in bf16")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    options = parser.parse_args()
    sizes = Sizes.of(config_path(options.config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = Training(sizes, device, options.autocast, options.compile)
    steps = sizes.max_steps if options.steps is None else options.steps
    for step, train, val in training.rows(steps):
        print(f"step {step}: train loss {train:.4f}, val loss {val:.4f}", flush=True)


if __name__ == "__main__":
    main()
