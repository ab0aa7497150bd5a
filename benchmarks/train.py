"""Time a training step of the baseline, of our model in a bare loop, and of ``fit``.

python benchmarks/train.py [--configs bigram,quickstart,gpt_small,gpt10m] [--json FILE]
    [--end_to_end]

Each loop runs in a separate process with its own allocator and thread settings. The loops of a
config take turns, so that other load on the machine affects all of them. In each turn a loop warms
up and is then timed for some rounds; the result is the median over all rounds. The loops:

- ``baseline``: benchmarks/baseline.py in float32, under bf16 autocast and, on CUDA, compiled.
- ``bare``: our model with its kernels and a fused optimizer, batches gathered on the device,
  without Lightning; compiled if ``fit`` is.
- ``fit``: ``python cli.py fit`` as shipped, with its callbacks and logger, between evaluations; on
  CUDA, where it is compiled, also without compiling.

``of peak`` is the speed as a share of the speed of the largest matrix product in the same
arithmetic, counting 6 * parameters + 12 * n_layer * n_head * head_size * T operations per
character, without recomputation; it is empty for the bigram, which has no matrix products. ``a/c``
is the time of the baseline divided by that of ``fit``; ``c/b`` is the time of ``fit`` divided by
that of ``bare``. The memory is the peak resident memory of the process or, on CUDA, the peak
reserved GPU memory. ``--end_to_end`` first compares time and memory of whole commands.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import training_loops
from baseline import NAMES, Sizes, config_path
from end_to_end import compare_end_to_end
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.hardware import best_device
from nanogpt.insight import provenance

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@cache
def peak(arithmetic: str, device: str) -> float:
    """Return the operations per second of a large matrix product, the best of ten runs.

    The size is doubled up to 2048 (8192 on CUDA) until a product takes 50 ms, because some CPUs
    multiply bf16 a hundred times more slowly than float32.
    """
    size, seconds = 128, 0.0
    torch.set_float32_matmul_precision("high" if arithmetic == "tf32" else "highest")
    while seconds < 0.05 and size < (8192 if device == "cuda" else 2048):
        size *= 2
        dtype = DTYPES.get(arithmetic, torch.float32)
        a, b = torch.randn(2, size, size, device=device, dtype=dtype)
        seconds = min(time_product(a, b) for _ in range(11))
    return 2 * size**3 / seconds


def time_product(a: Tensor, b: Tensor) -> float:
    """Return the seconds of one matrix product."""
    start = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(
    name: str,
    turns: int,
    rounds: int,
    seconds: float,
    save: Callable[[dict[str, Any]], None] = lambda results: None,
) -> list[dict[str, Any]]:
    """Time all loops of a config; return a row for each, ``fit`` last.

    ``save`` is called with the results so far, by loop, after each of them.
    """
    path, device = config_path(name), best_device()
    sizes = Sizes.from_config(path)
    characters = sizes.batch_size * sizes.block_size
    results: dict[str, list[dict[str, Any]]]
    results = {loop: [] for loop in training_loops.loop_names(sizes, device)}
    for _ in range(turns):
        for loop, of_loop in results.items():
            if not any("failure" in result for result in of_loop):
                of_loop.append(run_in_process(loop, path, rounds, seconds))
                save(results)
    rows = {}
    for loop, of_loop in results.items():
        row = rows[loop] = {"config": name, "loop": loop, **of_loop[-1]}
        if "failure" in row:
            continue
        times = [seconds for result in of_loop for seconds in result["rounds"]]
        seconds_per_step = statistics.median(times)
        row |= {"rounds": times, "ms_per_step": seconds_per_step * 1e3}
        row["characters_per_second"] = characters / seconds_per_step
        if flop := flop_per_character(sizes, row["parameters"]) * characters:
            row["of_peak"] = flop / seconds_per_step / peak(row["arithmetic"], device)
        row["peak_memory"] = row.get("gpu_reserved_bytes", row.get("resident_bytes"))
    return [row | ratios(row, rows) for row in rows.values()]


def run_in_process(*arguments: Any) -> dict[str, Any]:
    """Call ``training_loops.run`` in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(training_loops.run, *arguments).result()
        except BrokenProcessPool:
            return {"failure": "its process was killed: it may have run out of memory"}


def ratios(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the ratios of a row: baseline to ``fit`` (a/c), or ``fit`` to bare (c/b)."""
    loop, fit, bare = row["loop"], rows["fit"], rows["bare"]
    if loop.startswith("baseline") and "failure" not in row and "failure" not in fit:
        return {"a/c": row["ms_per_step"] / fit["ms_per_step"]}
    if loop == "fit" and "failure" not in row and "failure" not in bare:
        return {"c/b": fit["ms_per_step"] / bare["ms_per_step"]}
    return {}


def flop_per_character(sizes: Sizes, n_parameters: int) -> float:
    """Return the operations of a training step, forward and backward, per character.

    Each parameter takes six. q kᵀ and the weighted sum of v take twelve per layer, channel of the
    heads and character of the window (Chowdhery et al., 2022, "PaLM", appendix B).
    """
    if sizes.architecture == "bigram":
        return 0
    channels = sizes.n_head * (sizes.n_embd // sizes.n_head)
    return 6 * n_parameters + 12 * sizes.n_layer * channels * sizes.block_size


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    label = f"{row['config']:11} {row['loop']:25}"
    if "failure" in row:
        return f"{label} failed: {row['failure']}"
    share = f"{row['of_peak']:.1%}" if "of_peak" in row else ""
    cells = [f"{row['ms_per_step']:12,.2f} {row['characters_per_second']:12,.0f} {share:>8}"]
    cells += [f"{row[name]:6.2f}" if name in row else " " * 6 for name in ("a/c", "c/b")]
    if row["peak_memory"]:
        cells.append(f"{row['peak_memory'] / 2**20:8,.0f}")
    return " ".join([label, *cells])


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", default=",".join(NAMES), help="names or paths of configs")
    parser.add_argument("--turns", type=int, default=2, help="processes per loop")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds per turn")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of a round of at least one step"
    )
    parser.add_argument("--json", type=Path, help="also write all figures to this file")
    parser.add_argument(
        "--end_to_end",
        nargs="?",
        const="bigram",
        metavar="CONFIG",
        help="first compare whole commands, by default of the config bigram",
    )
    parser.add_argument(
        "--steps", type=int, help="steps of each --end_to_end run (default: the config's)"
    )
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

    def save(unfinished: dict[str, Any] | None = None) -> None:
        if options.json:
            report["unfinished"] = unfinished or {}
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    if options.end_to_end:
        report["end_to_end"] = compare_end_to_end(options.end_to_end, options.turns, options.steps)
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
        rows = measure(name, options.turns, options.rounds, options.seconds, save)
        print(*map(line, rows), sep="\n", flush=True)
        report["loops"] += rows
        save()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
