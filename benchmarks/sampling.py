"""Characters per second of sampling from gpt10m, ours beside the plain loop, in one process.

python benchmarks/sampling.py [--batches 1,64,256] [--characters 10000] [--steps 20] [--json FILE]

All start from a full window. ``plain`` is the plain loop over our model: the whole window again
for each character. ``reference`` does the same as the reference does: one module for each head, a
draw from the global generator, the context cropped from all ids so far. ``ours`` is what `predict`
does: a cache, refilled once per half window, and its settings of memory. Those are a process's, so
each loop is timed in one of its own. The model is untrained; speed does not know.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.generation.decoding import Context, decode
from nanogpt.generation.generate import STREAMS, STREAMS_ON_A_CPU
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.generation.quantization import set_weights
from nanogpt.hardware import best_device, keep_memory
from nanogpt.insight import provenance
from nanogpt.models import GPT

LONGEST = 30.0  # seconds for which a loop of whole windows is timed


class HeadByHead(nn.Module):
    """Attention as the lecture writes it: each head by itself, scores masked, then joined."""

    def __init__(self, attention: nn.Module, block_size: int) -> None:
        super().__init__()
        self.n_head, self.head_size = attention.n_head, attention.head_size
        heads = attention.qkv.weight.split(attention.head_size)  # 3 * nh of (hs, C)
        self.weights = nn.ParameterList(heads)
        self.out_proj = attention.out_proj
        self.register_buffer("tril", torch.ones(block_size, block_size).tril())

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        T, outputs = x.shape[1], []
        for h in range(self.n_head):
            q, k, v = (F.linear(x, self.weights[h + i * self.n_head]) for i in range(3))
            scores = q @ k.transpose(-2, -1) * self.head_size**-0.5
            scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
            outputs.append(scores.softmax(-1) @ v)
        return self.out_proj(torch.cat(outputs, dim=-1))


def gpt10m() -> GPT:
    """Return the headline model, untrained."""
    torch.manual_seed(1337)
    return GPT(65, 256, 6, 6, 384).eval()


def reference_loop(model: GPT, ids: Tensor) -> Iterator[Tensor]:
    """Yield ids (B,) for ever, as the reference samples them."""
    while True:
        with torch.no_grad():
            logits = model(ids[:, -model.block_size :])[:, -1]
            drawn = torch.multinomial(F.softmax(logits, dim=-1), 1)
        ids = torch.cat([ids, drawn], dim=1)
        yield drawn[:, 0]


def speed(loop: Iterator[Tensor], steps: int, batch: int, longest: float) -> float:
    """Return characters per second over some steps after the first."""
    next(loop)
    begin, done = time.perf_counter(), 0
    for drawn in islice(loop, steps):
        done += 1
        if drawn.device.type == "cuda":
            torch.cuda.synchronize()
        if time.perf_counter() - begin > longest:
            break
    return done * batch / (time.perf_counter() - begin)


def measure(kind: str, batch: int, device: str, options: argparse.Namespace) -> float:
    """Return characters per second of one kind of loop, in a fresh process."""
    if kind == "reference":
        model = gpt10m()
        for block in model.blocks:
            block.attn = HeadByHead(block.attn, 256)
        prompt = torch.randint(65, (batch, 256), device=device)
        return speed(reference_loop(model.to(device), prompt), options.steps, batch, LONGEST)
    if kind == "plain":
        model, cached, steps, longest = gpt10m().to(device), False, options.steps, LONGEST
    else:  # in groups as `predict` makes them
        keep_memory()
        batch = min(batch, STREAMS_ON_A_CPU if device == "cpu" else STREAMS)
        model, cached, longest = set_weights(gpt10m(), kind, device), True, math.inf
        steps = max(options.characters // batch, 128)
    prompt, numbers = torch.randint(65, (batch, 256), device=device), uniform_streams(1, batch, 0, device)
    context: Context = "refill" if cached else "exact"
    loop = decode(model, prompt, 10**9, SamplingRule(), numbers, context, cached)
    return speed(loop, steps, batch, longest)


def apart(*arguments: Any) -> float:
    """Call ``measure`` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--characters", type=int, default=10_000, help="for ours")
    parser.add_argument("--steps", type=int, default=20, help="for the loops of whole windows")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    device = best_device()
    machine = f"{provenance.machine(torch.device(device))}; {provenance.versions()}"
    code = f"{provenance.git_state()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}"
    print(f"{machine}\n{code}\n")
    kinds = ["fp32", "int8"] if device == "cpu" else ["fp32", "bf16"]
    print("characters per second, and how many times the plain loop's at the same batch")
    print("batch      plain  reference" + "".join(f"{'ours, ' + kind:>19}" for kind in kinds))
    figures: dict[int, dict[str, float]] = {}
    for batch in map(int, options.batches.split(",")):
        row = figures[batch] = {}
        print(f"{batch:5d}", end="", flush=True)
        for kind in ["plain", "reference", *kinds]:
            row[kind] = apart(kind, batch, device, options)
            if kind in kinds:
                cell = f"{row[kind]:11,.0f}{row[kind] / row['plain']:7.1f}x"
            else:
                cell = f"{row[kind]:11,.1f}"
            print(cell, end="", flush=True)
        print()
    if options.json:
        content = {"machine": machine, "code": code, "characters_per_second": figures}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
