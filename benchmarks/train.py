"""Milliseconds per training step: the textbook's loop, our model in a bare loop, and `fit`.

python benchmarks/train.py [--configs bigram,quickstart,gpt_small,gpt10m] [--json FILE] [--whole]

Each loop runs in a process of its own, with its own allocator and its own threads; the loops of a
config take turns, so that what else the machine does falls on all of them. In its turn a loop
warms up and is then timed for some rounds; a figure is the median of all its rounds. The loops are

- ``textbook``: benchmarks/baseline.py in float32, under bf16 autocast and, on CUDA, compiled too;
- ``bare``: our model, windows gathered on the device, the optimizer fused, without Lightning;
  compiled where `fit` is;
- ``fit``: `python cli.py fit` as shipped, with its callbacks and logger, between evaluations; on
  CUDA, where it is compiled, also without that.

``of peak`` is the share of the largest matrix product's speed, in the same arithmetic, that
6 * parameters + 12 * n_layer * n_head * head_size * T operations a character make: what the model
asks for, however often a loop computes it. A bigram multiplies nothing. The memory is the most
that a loop's process had resident, on CUDA the most that it had reserved on the GPU.
``--whole`` compares, before that, time and memory of whole commands, from start to end.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import training_loops
import torch
from baseline import NAMES, Sizes, config_path
from end_to_end import compare_whole

from nanogpt.errors import UserError
from nanogpt.hardware import best_device
from nanogpt.insight import provenance

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def peak(arithmetic: str, device: str) -> float:
    """Return operations a second of a big matrix product: the best of ten."""
    size, best = 8192 if device == "cuda" else 2048, float("inf")
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES.get(arithmetic, torch.float32))
    for _ in range(11):
        begin = time.perf_counter()
        torch.mm(a, b)
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def measure(name: str, turns: int, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time all loops of a config; return a row for each, `fit` the last."""
    path, device = config_path(name), best_device()
    sizes = Sizes.of(path)
    characters = sizes.batch_size * sizes.block_size
    found: dict[str, list[dict[str, Any]]] = {n: [] for n in training_loops.names(sizes, device)}
    for _ in range(turns):
        for loop, results in found.items():
            if not any("failure" in result for result in results):
                results.append(apart(loop, path, rounds, seconds))
    rows = {}
    for loop, results in found.items():
        row = rows[loop] = {"config": name, "loop": loop, **results[-1]}
        if "failure" in row:
            continue
        times = [seconds for result in results for seconds in result["rounds"]]
        seconds_per_step = statistics.median(times)
        row |= {"rounds": times, "ms_per_step": seconds_per_step * 1e3}
        row["characters_per_second"] = characters / seconds_per_step
        if flop := flop_per_character(sizes, row["parameters"]) * characters:
            row["of_peak"] = flop / seconds_per_step / peak(row["arithmetic"], device)
        row["peak_memory"] = row.get("gpu_reserved_bytes", row.get("resident_bytes"))
    return [row | ratios(row, rows) for row in rows.values()]


def apart(*arguments: Any) -> dict[str, Any]:
    """Call ``training_loops.run`` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(training_loops.run, *arguments).result()
        except BrokenProcessPool:
            return {"failure": "its process was killed: was there memory enough?"}


def ratios(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return how much longer the textbook takes than `fit` (a/c), and `fit` than bare (c/b)."""
    loop, fit, bare = row["loop"], rows["fit"], rows["bare"]
    if loop.startswith("textbook") and "failure" not in row and "failure" not in fit:
        return {"a/c": row["ms_per_step"] / fit["ms_per_step"]}
    if loop == "fit" and "failure" not in row and "failure" not in bare:
        return {"c/b": fit["ms_per_step"] / bare["ms_per_step"]}
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
    if row["peak_memory"]:
        cells.append(f"{row['peak_memory'] / 2**20:8,.0f}")
    return " ".join([begin, *cells])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=",".join(NAMES), help="names or paths of configs")
    parser.add_argument("--turns", type=int, default=2, help="of each loop, a process each")
    parser.add_argument("--rounds", type=int, default=3, help="of a turn")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of a round, which is a step at least"
    )
    parser.add_argument("--json", type=Path, help="write all figures into this file as well")
    parser.add_argument("--whole", nargs="?", const="bigram", help="whole runs of a config, first")
    parser.add_argument("--steps", type=int, help="of whole runs, instead of the config's")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.turns < 1:
        parser.error("--rounds and --turns must be at least 1")
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
        report["whole"] = compare_whole(options.whole, options.turns, options.steps)
        print(flush=True)
        save()
    kinds = ["fp32", "tf32", "bf16"] if device == "cuda" else ["fp32", "bf16"]
    report["peak_flops"] = {kind: peak(kind, device) for kind in kinds}
    print("matrix products:", end=" ")
    print(", ".join(f"{v / 1e12:.3f} TFLOP/s in {k}" for k, v in report["peak_flops"].items()))
    memory = "GPU MiB" if device == "cuda" else "MiB"
    titles = f"{'ms per step':>12} {'characters/s':>12} {'of peak':>8}    a/c    c/b {memory:>8}"
    print(f"{'config':11} {'loop':25} {titles}")
    report["loops"] = []
    for name in options.configs.split(","):
        rows = measure(name, options.turns, options.rounds, options.seconds)
        print(*map(line, rows), sep="\n", flush=True)
        report["loops"] += rows
        save()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
