"""Characters per second of sampling from gpt10m: ours, a plain loop and the reference's loop.

python benchmarks/sampling.py [--batches 1,64,256] [--characters 10000] [--steps 20] [--json FILE]

All loops start from a full window of an untrained model, and each runs in a separate process. The
plain loop computes the whole window again for each character, with our model and its kernels, and
draws from the global generator. The reference's loop does the same one attention head at a time.
Ours is that of `predict`: a KV cache, recomputed once per half window, and the memory settings of
the process.
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

from nanogpt import kernels
from nanogpt.generation.decoding import decode
from nanogpt.generation.generate import CPU_BATCH_SIZE, GPU_BATCH_SIZE
from nanogpt.generation.quantization import set_weights
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.hardware import best_device, configure_allocator
from nanogpt.insight import provenance
from nanogpt.models import GPT, GPTConfig

MAX_SECONDS = 30.0  # for which a loop that recomputes whole windows is timed


class HeadByHead(nn.Module):
    """Attention with the heads computed one after the other, as in the reference."""

    def __init__(self, attention: nn.Module, block_size: int) -> None:
        super().__init__()
        self.n_head, self.head_size = attention.n_head, attention.head_size
        heads = attention.qkv.weight.split(attention.head_size)  # 3 * nh of (hs, C)
        self.head_weights = nn.ParameterList(heads)
        self.out_proj = attention.out_proj
        self.register_buffer("tril", torch.ones(block_size, block_size).tril())

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        T, outputs = x.shape[1], []
        for h in range(self.n_head):
            q, k, v = (F.linear(x, self.head_weights[h + i * self.n_head]) for i in range(3))
            scores = q @ k.transpose(-2, -1) * self.head_size**-0.5
            scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
            outputs.append(scores.softmax(-1) @ v)
        return self.out_proj(torch.cat(outputs, dim=-1))


def gpt10m() -> GPT:
    """Return an untrained model of the size of gpt10m."""
    torch.manual_seed(1337)
    config = GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=384)
    return GPT(65, config).eval()


@torch.no_grad()
def plain_loop(model: GPT, ids: Tensor) -> Iterator[Tensor]:
    """Yield sampled ids (B,) without end, computing the last window of ids (B, T) for each."""
    while True:
        logits = model(ids[:, -model.block_size :])[:, -1]  # (B, V)
        drawn = torch.multinomial(F.softmax(logits, dim=-1), 1)  # (B, 1)
        ids = torch.cat([ids, drawn], dim=1)
        yield drawn[:, 0]


def speed(
    loop: Iterator[Tensor], steps: int, batch: int, max_seconds: float, warm_up: int = 1
) -> float:
    """Return the characters per second over a number of steps after some others."""
    for _ in islice(loop, warm_up):
        pass
    start, done = time.perf_counter(), 0
    for drawn in islice(loop, steps):
        done += 1
        if drawn.device.type == "cuda":
            torch.cuda.synchronize()
        if time.perf_counter() - start > max_seconds:
            break
    return done * batch / (time.perf_counter() - start)


def measure(kind: str, batch: int, device: str, options: argparse.Namespace) -> float:
    """Return the characters per second of one kind of loop."""
    model = gpt10m()
    if kind in ("plain", "reference"):
        if kind == "reference":
            for block in model.blocks:
                block.attn = HeadByHead(block.attn, model.block_size)
        else:
            kernels.install(model)
        prompt = torch.randint(65, (batch, model.block_size), device=device)
        return speed(plain_loop(model.to(device), prompt), options.steps, batch, MAX_SECONDS)
    configure_allocator()
    batch = min(batch, CPU_BATCH_SIZE if device == "cpu" else GPU_BATCH_SIZE)  # as in `predict`
    model = set_weights(kernels.install(model), kind, device)
    prompt = torch.randint(65, (batch, model.block_size), device=device)
    u_stream = uniform_streams(1, batch, 0, device)
    loop = decode(model, prompt, 10**9, SamplingRule(), u_stream)
    # on a GPU, a step is recorded the second time that the window has its length
    warm_up = 3 * model.block_size // 2 if device == "cuda" else 1
    steps = max(options.characters // batch, options.min_steps)
    return speed(loop, steps, batch, math.inf, warm_up)


def run_in_process(*arguments: Any) -> float:
    """Call ``measure`` in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", default="1,64,256", help="numbers of samples per step")
    parser.add_argument("--characters", type=int, default=10_000, help="drawn by our loop")
    parser.add_argument("--min_steps", type=int, default=128, help="of our loop")
    parser.add_argument("--steps", type=int, default=20, help="of the other loops")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    device = best_device()
    machine = f"{provenance.machine(torch.device(device))}; {provenance.versions()}"
    code = f"{provenance.git_state()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}"
    print(f"{machine}\n{code}\n")
    kinds = ["fp32", "int8"] if device == "cpu" else ["fp32", "bf16"]
    print("characters per second, and the ratio to the plain loop at the same batch size")
    print("batch      plain  reference" + "".join(f"{'ours, ' + kind:>19}" for kind in kinds))
    figures: dict[int, dict[str, float]] = {}
    for batch in map(int, options.batches.split(",")):
        row = figures[batch] = {}
        print(f"{batch:5d}", end="", flush=True)
        for kind in ["plain", "reference", *kinds]:
            row[kind] = run_in_process(kind, batch, device, options)
            if kind in kinds:
                cell = f"{row[kind]:11,.0f}{row[kind] / row['plain']:7.1f}x"
            else:
                cell = f"{row[kind]:11,.1f}"
            print(cell, end="", flush=True)
            if options.json:
                content = {"machine": machine, "code": code, "characters_per_second": figures}
                options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
        print()


if __name__ == "__main__":
    main()
