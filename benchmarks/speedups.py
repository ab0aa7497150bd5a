"""Loss curves with and without each speed-up: what is faster must not learn otherwise.

python benchmarks/speedups.py [--seeds 3] [--steps 1000] [--json FILE]

A small GPT with dropout is trained as shipped, and again with one speed-up taken away or added at
a time. Runs of one seed start from the same weights and see the same windows; what differs is
rounding, and which random bits drop what. The last row is the textbook's loop, which shares
nothing but the sizes and the text. Losses are those of the whole val split.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from baseline import Sizes, Training
from torch import Tensor, nn

from nanogpt.hardware import best_device, keep_memory
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.models import GPT
from nanogpt.kernels.dropout import Dropout
from nanogpt.text.batches import Draw, Windows, evaluation_windows, gather, training_batches
from nanogpt.training.lightning_module import mean_loss

SIZES = Sizes("gpt", 16, 64, 2, 4, 64, 0.2, 1e-3, 0, 0)
FIRST_SEED = 1337
EVALUATIONS = 4  # of a run: after an eighth of its steps, a quarter, a half, and all
PLACES = tuple(2**-i for i in reversed(range(EVALUATIONS)))
Steps = Callable[[], object]
Loss = Callable[[Tensor, Tensor], Tensor]


def whole_weights(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention as it is written: all weights at once, and PyTorch's own dropout on them."""
    T = q.shape[2]
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    past = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    return F.dropout(scores.masked_fill(~past, -math.inf).softmax(-1), dropout) @ v


VARIANTS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "as shipped": nullcontext,
    "attention weights whole": lambda: patch("nanogpt.models.gpt.causal_attention", whole_weights),
    "PyTorch's dropout": lambda: patch.object(Dropout, "forward", nn.Dropout.forward),
    "AdamW not fused": nullcontext,
    "bf16 autocast": nullcontext,
    "compiled": nullcontext,
}


def ours(variant: str, seed: int, device: str, data: Training) -> tuple[Steps, nn.Module]:
    """Return what takes a step of our model, and the model."""
    torch.manual_seed(seed)
    widths = (SIZES.block_size, SIZES.n_layer, SIZES.n_head, SIZES.n_embd)
    vocab_size = int(data.splits["train"].max()) + 1
    net = GPT(vocab_size, *widths, dropout=SIZES.dropout).to(device)
    fused, half = variant != "AdamW not fused", variant == "bf16 autocast"
    optimizer = torch.optim.AdamW(net.parameters(), lr=SIZES.learning_rate, fused=fused)
    ids = data.splits["train"].to(device)
    high = len(ids) - SIZES.block_size
    batches = training_batches(Draw(seed, SIZES.batch_size, high), 0)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return mean_loss(net(inputs), targets)

    loss: Loss = torch.compile(loss_of) if variant == "compiled" else loss_of

    def step() -> None:
        inputs, targets = gather(ids, Windows(next(batches).to(device), SIZES.block_size))
        with torch.autocast(device, torch.bfloat16) if half else nullcontext():
            mean = loss(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        mean.backward()
        optimizer.step()

    return step, net


@torch.no_grad()
def val_loss(net: nn.Module, ids: Tensor) -> float:
    """Return the mean loss over a whole split."""
    net.eval()
    total = 0.0
    for windows in evaluation_windows(len(ids) - 1, SIZES.block_size):
        inputs, targets = gather(ids, Windows(windows.offsets.to(ids.device), windows.length))
        total += mean_loss(net(inputs), targets).item() * targets.numel()
    net.train()
    return total / (len(ids) - 1)


def curve(variant: str, seed: int, steps: int, device: str) -> list[float]:
    """Train once; return the val loss at each evaluation."""
    with patch("baseline.SEED", seed):
        data = Training(SIZES, device)
    val = data.splits["val"].to(device)
    textbook = variant == "textbook"
    step, net = (data.step, data.model) if textbook else ours(variant, seed, device, data)
    losses, done = [], 0
    with ExitStack() as stack:
        stack.enter_context(VARIANTS.get(variant, nullcontext)())
        for place in PLACES:
            for _ in range(round(place * steps) - done):
                step()
            done = round(place * steps)
            losses.append(val_loss(net, val))
    return losses


def row(name: str, curves: list[list[float]], shipped: list[list[float]]) -> tuple[str, ...]:
    """Return a row of the table: means and spreads, and how far the ends lie from ours."""
    cells = []
    for losses in zip(*curves, strict=True):
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        cells.append(f"{statistics.fmean(losses):.4f}{spread}")
    apart = statistics.fmean(c[-1] for c in curves) - statistics.fmean(c[-1] for c in shipped)
    return (name, *cells, "" if curves is shipped else f"{apart:+.4f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="write all losses into this file as well")
    options = parser.parse_args()
    keep_memory()
    device = best_device()
    print(f"{provenance.machine(torch.device(device))}; {provenance.versions()}")
    print(f"{provenance.git_state()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}\n")
    found: dict[str, list[list[float]]] = {}
    rows = []
    for name in [*VARIANTS, "textbook"]:
        seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
        found[name] = [curve(name, seed, options.steps, device) for seed in seeds]
        rows.append(row(name, found[name], found["as shipped"]))
        print(*rows[-1], sep="  ", flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    steps = [f"val loss at {round(place * options.steps)}" for place in PLACES]
    print(f"\n{table(('variant', *steps, 'from ours'), rows)}")


if __name__ == "__main__":
    main()
