"""The baseline: a plain training loop with one module per head and batches assembled in Python.

python benchmarks/baseline.py bigram|quickstart|gpt_small|gpt10m [--steps N] [--autocast]

It follows the published description of the reference. All random numbers come from the global
generator, in this order: the weights from the bottom up; at each evaluation 200 batches of the
train split and 200 of the val split; then the batch of the step. The bigram's evaluations on a CPU
therefore equal the reference's to the last digit (see tests/test_baseline.py). Of a config it uses
sizes, dropout, learning rate and steps; it keeps PyTorch's initialization and a constant rate.

Axes: B batch, T time, C channels (n_embd), nh heads, hs head size, V vocabulary.
"""

import argparse
from collections.abc import Iterator
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
EVALUATION_BATCHES = 200  # per split


@dataclass(frozen=True)
class Sizes:
    """The settings of a config that the baseline uses."""

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
    def from_config(cls, path: Path) -> "Sizes":
        """Read the settings from a config file."""
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
    """Return the path of a shipped config, or the given path of a YAML file."""
    return Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"


class Head(nn.Module):
    """One head of causal self-attention."""

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
    """Several heads, computed one after the other, concatenated and projected."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        head_size = sizes.n_embd // sizes.n_head
        self.heads = nn.ModuleList(Head(sizes, head_size) for _ in range(sizes.n_head))
        self.out_proj = nn.Linear(sizes.n_head * head_size, sizes.n_embd)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        y = torch.cat([head(x) for head in self.heads], dim=-1)  # (B, T, nh * hs)
        return self.dropout(self.out_proj(y))


class FeedForward(nn.Module):
    """A two-layer perceptron applied at each position."""

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
    """Attention, then feed-forward, each added to the residual stream (pre-norm)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.attn, self.mlp = MultiHeadAttention(sizes), FeedForward(sizes)
        self.ln_1, self.ln_2 = nn.LayerNorm(sizes.n_embd), nn.LayerNorm(sizes.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """The baseline's GPT: ids (B, T) in, logits (B, T, V) out."""

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
    """The training loop with its data, model and optimizer. The constructor sets the global seed.

    Args:
        sizes: of the model and the run.
        device: of the model; the text stays on the CPU, and each batch is copied to the device.
        autocast: whether to use PyTorch's bf16 autocast.
        compiled: whether to compile the model with ``torch.compile``.
        seed: of the global generator.
    """

    def __init__(
        self,
        sizes: Sizes,
        device: str = "cpu",
        autocast: bool = False,
        compiled: bool = False,
        seed: int = SEED,
    ) -> None:
        self.sizes, self.device, self.autocast = sizes, device, autocast
        torch.manual_seed(seed)
        text = load_corpus().text
        characters = sorted(set(text))
        id_of = {character: i for i, character in enumerate(characters)}
        ids = torch.tensor([id_of[character] for character in text])
        n = int(0.9 * len(ids))
        self.splits = {"train": ids[:n], "val": ids[n:]}
        V, bigram = len(characters), sizes.architecture == "bigram"
        self.model = (nn.Embedding(V, V) if bigram else GPT(V, sizes)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=sizes.learning_rate)
        if compiled:
            self.model.compile()

    def batch(self, split: str) -> tuple[Tensor, Tensor]:
        """Draw a batch from a split: inputs and targets, (B, T) each."""
        ids, T = self.splits[split], self.sizes.block_size
        starts = torch.randint(len(ids) - T, (self.sizes.batch_size,))
        inputs = torch.stack([ids[i : i + T] for i in starts])
        targets = torch.stack([ids[i + 1 : i + T + 1] for i in starts])
        return inputs.to(self.device), targets.to(self.device)

    def loss(self, split: str) -> Tensor:
        """Return the mean loss on a new batch of a split, in nats per character."""
        inputs, targets = self.batch(split)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
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
        """Return the mean losses over 200 random batches of the train and of the val split."""
        self.model.eval()
        means = []
        for split in ("train", "val"):
            losses = [self.loss(split).item() for _ in range(EVALUATION_BATCHES)]
            means.append(torch.tensor(losses).mean().item())
        self.model.train()
        return means[0], means[1]

    def evaluations(self, steps: int) -> Iterator[tuple[int, float, float]]:
        """Train for some steps; yield the step, train loss and val loss of each evaluation."""
        for step in range(steps):
            if step % self.sizes.val_check_interval == 0:
                yield (step, *self.evaluate())
            self.step()


def main() -> None:
    """Train and print the evaluations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help=f"one of {', '.join(NAMES)}, or the path of a config")
    parser.add_argument("--steps", type=int, help="number of steps (default: the config's)")
    parser.add_argument("--autocast", action="store_true", help="use bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="compile the model")
    options = parser.parse_args()
    sizes = Sizes.from_config(config_path(options.config))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    training = Training(sizes, device, options.autocast, options.compile)
    steps = sizes.max_steps if options.steps is None else options.steps
    for step, train, val in training.evaluations(steps):
        print(f"step {step}: train loss {train:.4f}, val loss {val:.4f}", flush=True)


if __name__ == "__main__":
    main()
