"""Compare loss curves with and without each speed-up, which must not change what a model learns.

python benchmarks/speedups.py [--seeds 3] [--steps 1000] [--json FILE]

A small GPT with dropout is trained with all kernels installed and a fused optimizer, and again with
one speed-up removed or added. Runs of the same seed start from the same weights and see the same
batches; they differ in rounding and in the random bits of dropout. The last row is the baseline,
which shares only the sizes and the text. Losses are those of the whole val split.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from baseline import Sizes, Training
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.hardware import best_device, configure_allocator
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.models import GPT, GPTConfig
from nanogpt.models.gpt import Attention
from nanogpt.text.batches import Draw, Windows, evaluation_windows, gather, training_batches
from nanogpt.training.losses import cross_entropy_loss

SIZES = Sizes(
    architecture="gpt",
    batch_size=16,
    block_size=64,
    n_layer=2,
    n_head=4,
    n_embd=64,
    dropout=0.2,
    learning_rate=1e-3,
    max_steps=0,
    val_check_interval=0,
)
FIRST_SEED = 1337
EVALUATED_AT = (0.125, 0.25, 0.5, 1.0)  # shares of the steps


@dataclass(frozen=True)
class Variant:
    """How our model is trained.

    Args:
        without: the modules that keep their plain implementation.
        fused: whether AdamW is fused.
        autocast: whether to use bf16 autocast.
        compiled: whether to compile the loss.
    """

    without: tuple[type[nn.Module], ...] = ()
    fused: bool = True
    autocast: bool = False
    compiled: bool = False


SHIPPED, BASELINE = "kernels installed", "baseline"
VARIANTS = {
    SHIPPED: Variant(),
    "plain modules": Variant(without=tuple(kernels.REPLACEMENTS)),
    "whole attention weights": Variant(without=(Attention,)),
    "PyTorch's dropout": Variant(without=(nn.Dropout,)),
    "AdamW not fused": Variant(fused=False),
    "bf16 autocast": Variant(autocast=True),
    "compiled": Variant(compiled=True),
}


def build(variant: Variant, vocab_size: int) -> GPT:
    """Build the model with the kernels of a variant."""
    config = GPTConfig(
        SIZES.block_size, SIZES.n_layer, SIZES.n_head, SIZES.n_embd, dropout=SIZES.dropout
    )
    wanted = {
        plain: make for plain, make in kernels.REPLACEMENTS.items() if plain not in variant.without
    }
    return kernels.install(GPT(vocab_size, config), wanted)


def ours(
    variant: Variant, seed: int, device: str, ids: Tensor
) -> tuple[Callable[[], object], nn.Module]:
    """Return a function that takes a training step of our model on ids, and the model."""
    torch.manual_seed(seed)
    model = build(variant, int(ids.max()) + 1).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SIZES.learning_rate, fused=variant.fused)
    num_offsets = len(ids) - SIZES.block_size
    batches = training_batches(Draw(seed, SIZES.batch_size, num_offsets), 0)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_loss(model(inputs), targets)

    run = torch.compile(loss_of) if variant.compiled else loss_of

    def step() -> None:
        inputs, targets = gather(ids, Windows(next(batches).to(device), SIZES.block_size))
        with torch.autocast(device, torch.bfloat16) if variant.autocast else nullcontext():
            loss = run(inputs, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step, model


@torch.no_grad()
def val_loss(model: nn.Module, ids: Tensor) -> float:
    """Return the mean loss over a whole split."""
    model.eval()
    total = 0.0
    for windows in evaluation_windows(len(ids) - 1, SIZES.block_size):
        inputs, targets = gather(ids, Windows(windows.offsets.to(ids.device), windows.length))
        total += cross_entropy_loss(model(inputs), targets).item() * targets.numel()
    model.train()
    return total / (len(ids) - 1)


def loss_curve(name: str, seed: int, n_steps: int, device: str) -> list[float]:
    """Train a variant, or the baseline, once; return the val loss of each evaluation."""
    baseline = Training(SIZES, device, seed=seed)
    ids, val_ids = (baseline.splits[split].to(device) for split in ("train", "val"))
    if name == BASELINE:
        step, model = baseline.step, baseline.model
    else:
        step, model = ours(VARIANTS[name], seed, device, ids)
    losses, done = [], 0
    for share in EVALUATED_AT:
        for _ in range(round(share * n_steps) - done):
            step()
        done = round(share * n_steps)
        losses.append(val_loss(model, val_ids))
    return losses


def row(name: str, curves: list[list[float]], shipped: list[list[float]]) -> tuple[str, ...]:
    """Return a row of the table: means, standard deviations, and the final difference."""
    cells = []
    for losses in zip(*curves, strict=True):
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        cells.append(f"{statistics.fmean(losses):.4f}{spread}")
    difference = statistics.fmean(c[-1] for c in curves) - statistics.fmean(c[-1] for c in shipped)
    return (name, *cells, "" if curves is shipped else f"{difference:+.4f}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--steps", type=int, default=1000, help="of each run")
    parser.add_argument("--json", type=Path, help="also write all losses to this file")
    options = parser.parse_args()
    configure_allocator()
    device = best_device()
    print(f"{provenance.machine(torch.device(device))}; {provenance.versions()}")
    print(f"{provenance.git_state()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}\n")
    curves: dict[str, list[list[float]]] = {}
    rows = []
    for name in [*VARIANTS, BASELINE]:
        seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
        curves[name] = [loss_curve(name, seed, options.steps, device) for seed in seeds]
        rows.append(row(name, curves[name], curves[SHIPPED]))
        print(*rows[-1], sep="  ", flush=True)
        if options.json:
            options.json.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    titles = [f"val loss at step {round(share * options.steps)}" for share in EVALUATED_AT]
    print(f"\n{table(('variant', *titles, 'difference'), rows)}")


if __name__ == "__main__":
    main()
