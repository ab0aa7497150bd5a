"""Characters per second of sampling from gpt10m, ours beside the plain loop, in one process.

python benchmarks/sampling.py [--batches 1,64,256] [--characters 10000] [--steps 20]

All start from a full window. ``plain`` is the plain loop over our model: the whole window again
for each character. ``reference`` does the same as the reference does: one module for each head, a
draw from the global generator, the context cropped from all ids so far. ``ours`` is what `predict`
does: a cache, refilled once per half window. The model is untrained; speed does not know.
"""

import argparse
import platform
import time
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt.generation.decoding import decode
from nanogpt.generation.generate import STREAMS, STREAMS_ON_A_CPU
from nanogpt.generation.sampling import SamplingRule, chances
from nanogpt.generation.weights import set_weights
from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.models import GPT

LONGEST = 30.0  # seconds for which a loop of whole windows is timed


class HeadByHead(nn.Module):
    """Attention as the lecture writes it: each head by itself, scores masked, then joined."""

    def __init__(self, attention: nn.Module, block_size: int) -> None:
        super().__init__()
        self.n_head, self.head_size = attention.n_head, attention.head_size
        heads = attention.query_key_value.weight.split(attention.head_size)  # 3 * nh of (hs, C)
        self.weights = nn.ParameterList(heads)
        self.projection = attention.projection
        self.register_buffer("tril", torch.ones(block_size, block_size).tril())

    def forward(self, x: Tensor, cache: None = None) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        T, outputs = x.shape[1], []
        for h in range(self.n_head):
            q, k, v = (F.linear(x, self.weights[h + i * self.n_head]) for i in range(3))
            scores = q @ k.transpose(-2, -1) * self.head_size**-0.5
            scores = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf"))
            outputs.append(scores.softmax(-1) @ v)
        return self.projection(torch.cat(outputs, dim=-1))


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


def ours(model: GPT, prompt: Tensor, characters: int) -> float:
    """Return characters per second of the cached loop, in groups as `predict` makes them."""
    batch, device = len(prompt), prompt.device
    size = min(batch, STREAMS_ON_A_CPU if device.type == "cpu" else STREAMS)
    loop = decode(model, prompt[:size], 10**9, SamplingRule(), chances(1, size, device=device))
    return speed(loop, max(characters // size, 128), size, float("inf"))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--characters", type=int, default=10_000, help="for ours")
    parser.add_argument("--steps", type=int, default=20, help="for the loops of whole windows")
    options = parser.parse_args()
    device = best_device()
    print(f"{provenance.machine(torch.device(device))}; {provenance.versions()}")
    print(f"{provenance.git_state()}; {platform.platform()}; {time.strftime('%Y-%m-%d')}\n")
    kinds = ["fp32", "int8"] if device == "cpu" else ["fp32", "bf16"]
    models = {kind: set_weights(gpt10m(), kind, device) for kind in kinds}
    lecture = gpt10m().to(device)
    for block in lecture.blocks:
        block.attn = HeadByHead(block.attn, 256).to(device)
    print("characters per second, and how many times the plain loop's at the same batch")
    print("batch      plain  reference" + "".join(f"{'ours, ' + kind:>19}" for kind in kinds))
    for batch in map(int, options.batches.split(",")):
        prompt = torch.randint(65, (batch, 256), device=device)
        numbers = chances(1, batch, device=device)
        rule = SamplingRule()
        loop = decode(models["fp32"], prompt, 10**9, rule, numbers, "exact", cached=False)
        plain = speed(loop, options.steps, batch, LONGEST)
        reference = speed(reference_loop(lecture, prompt), options.steps, batch, LONGEST)
        cells = "".join(
            f"{(s := ours(models[k], prompt, options.characters)):>11,.0f}{s / plain:>7.1f}x"
            for k in kinds
        )
        print(f"{batch:5d} {plain:10,.1f} {reference:10,.1f}{cells}", flush=True)


if __name__ == "__main__":
    main()
