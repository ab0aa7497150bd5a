"""Milliseconds per training step: the textbook's loop, our model in a bare loop, and `fit`.

python benchmarks/train.py [--configs bigram,quickstart,gpt_small,gpt10m] [--json FILE] [--whole]

All loops of a config take turns in one process, so that what else the machine does falls on all
of them: whenever Lightning asks for the batch after a round of its own, the others have theirs.
A figure is the median of the rounds. The loops are

- ``textbook``: benchmarks/textbook.py in float32, under bf16 autocast and, on CUDA, compiled too;
- ``bare``: our model, windows gathered on the device, fused AdamW, without Lightning; compiled
  too where `fit` is, which is then what `fit` is compared with;
- ``fit``: `python cli.py fit` as shipped, with its callbacks and logger, between evaluations.

``of peak`` is the share of the largest matrix product's speed, measured in the same process and
arithmetic, that 6 * parameters + 12 * n_layer * n_head * head_size * T operations a character
make: what the model asks for, however often a loop computes it. A bigram multiplies nothing.
``--whole`` compares, before that, time and memory of whole commands, from start to end.
"""

import argparse
import gc
import io
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
from contenders import THREADS, Contender, Fit, Turns
from textbook import NAMES, Sizes, config_path
from whole import compare_whole

from nanogpt.errors import UserError
from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.models import count_parameters
from nanogpt.training import cli

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LONGEST = 200.0  # seconds after which a config begins no further round


@cache
def peak(arithmetic: str, device: str) -> float:
    """Return operations a second of a big matrix product: the best of ten."""
    size, best = 8192 if device == "cuda" else 2048, float("inf")
    torch.set_num_threads(THREADS)
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES.get(arithmetic, torch.float32))
    for _ in range(11):
        begin = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def measure(name: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time all loops of a config; return a row for each, `fit` the last."""
    path, device = config_path(name), best_device()
    sizes = Sizes.of(path)
    Fit.turns = None
    gc.collect()  # the config before leaves the GPU
    turns = Fit.turns = Turns(sizes, rounds, seconds, LONGEST)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = ["--config", str(path), "--trainer.default_root_dir", folder]
        options += ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu"]
        options += ["--trainer.max_steps", str(10**6), "--trainer.enable_progress_bar", "false"]
        options += ["--trainer.limit_val_batches", "0", "--card", "false"]
        fitted = cli.run("fit", options, Fit)
    characters = sizes.batch_size * sizes.block_size
    flop = flop_per_character(sizes, count_parameters(fitted.model.net)) * characters
    of_loop = {loop.name: loop for loop in turns.contenders}
    rows = []
    for loop in turns.contenders:
        row: dict[str, Any] = {"config": name, "loop": loop.name, "arithmetic": loop.arithmetic}
        if loop.failure:
            rows.append(row | {"failure": loop.failure})
            continue
        row |= {"ms_per_step": loop.seconds * 1e3, "timed_steps": loop.timed_steps}
        row |= {"rounds_ms": [s * 1e3 for s in loop.rounds], "threads": loop.threads}
        row |= {"characters_per_second": characters / loop.seconds}
        if flop:
            row["of_peak"] = flop / loop.seconds / peak(loop.arithmetic, device)
        if device == "cuda":
            row["peak_memory"] = loop.peak_memory
        rows.append(row | ratios(loop, of_loop))
    return rows


def ratios(loop: Contender, of_loop: dict[str, Contender]) -> dict[str, float]:
    """Return how much longer the textbook takes than `fit` (a/c), and `fit` than bare (c/b)."""
    if loop.name.startswith("textbook"):
        return {"a/c": loop.seconds / of_loop["fit"].seconds}
    bare = of_loop.get("bare, compiled", of_loop["bare"])  # compiled where `fit` is
    if loop.name == "fit" and not bare.failure:
        return {"c/b": loop.seconds / bare.seconds}
    return {}


def flop_per_character(sizes: Sizes, n_parameters: int) -> float:
    """Return the operations of a training step, forward and backward, for each character.

    Six for each parameter, and twelve for each layer, channel of its heads and character of the
    window, in q kᵀ and the weighted sum of v (Chowdhery et al., 2022, appendix B).
    """
    if sizes.architecture == "bigram":
        return 0
    channels = sizes.n_head * (sizes.n_embd // sizes.n_head)
    return 6 * n_parameters + 12 * sizes.n_layer * channels * sizes.block_size


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    begin = f"{row['config']:11} {row['loop']:25}"
    if "failure" in row:
        return f"{begin} failed: {row['failure']}"
    share = f"{row['of_peak']:.1%}" if "of_peak" in row else ""
    cells = [f"{row['ms_per_step']:12,.2f} {row['characters_per_second']:12,.0f} {share:>8}"]
    cells += [f"{row[name]:6.2f}" if name in row else " " * 6 for name in ("a/c", "c/b")]
    if "peak_memory" in row:
        cells.append(f"{row['peak_memory'] / 2**20:8,.0f}")
    return " ".join([begin, *cells]).rstrip()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=",".join(NAMES), help="names or paths of configs")
    parser.add_argument("--rounds", type=int, default=5, help="of each loop, fewer where slow")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of a round, which is a step at least"
    )
    parser.add_argument("--json", type=Path, help="write all figures into this file as well")
    parser.add_argument("--whole", nargs="?", const="bigram", help="whole runs of a config, first")
    parser.add_argument("--steps", type=int, help="of whole runs, instead of the config's")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    options, device = parse(arguments), best_device()
    report: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/train.py", *arguments]),
        "machine": provenance.machine(torch.device(device)),
        "versions": provenance.versions(),
        "code": provenance.git_state(),
        "platform": platform.platform(),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(*report.values(), sep="\n", end="\n\n", flush=True)

    def save() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    if options.whole:
        report["whole"] = compare_whole(options.whole, options.rounds, options.steps)
        print(flush=True)
        save()
    kinds = ["fp32", "tf32", "bf16"] if device == "cuda" else ["fp32", "bf16"]
    report["peak_flops"] = {kind: peak(kind, device) for kind in kinds}
    print("matrix products:", end=" ")
    print(", ".join(f"{v / 1e12:.3f} TFLOP/s in {k}" for k, v in report["peak_flops"].items()))
    memory = "   MiB of GPU" if device == "cuda" else ""
    print(
        f"{'config':11} {'loop':25} {'ms per step':>12} {'characters/s':>12} {'of peak':>8}", end=""
    )
    print(f"    a/c    c/b{memory}")
    report["loops"] = []
    for name in options.configs.split(","):
        rows = measure(name, options.rounds, options.seconds)
        print(*map(line, rows), sep="\n", flush=True)
        report["loops"] += rows
        save()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
