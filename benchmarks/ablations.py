"""Train a set of variants with several seeds and print their val losses as a table.

python benchmarks/ablations.py [--set quickstart] [--seeds 3] [--steps N] [--tune] [--jobs 1]
    [--out FOLDER]

A variant is a config with further options; see benchmarks/ablation_sets.py. Each run is a `fit` of
its own in a folder below --out. Interrupted runs are resumed and finished runs are not repeated, so
adding seeds or variants costs only the new runs. With --tune the last tenth of the *train* split
replaces the val split, which stays unseen: use it to choose settings. With --jobs 2 two runs train
at a time, each with half of the CPU's cores; their seconds are then less meaningful.

The sets `quickstart`, `ingredients`, `rates`, `best` and `regularizers` are small enough for a CPU.
`best` and `regularizers` are gpt10m_best.yaml at a thirtieth of its parameters, train split and
training; the number of characters per parameter, and how often each is seen, stay the same. `fast`
(the ingredients of gpt10m_fast.yaml) and `full` (gpt10m_best.yaml) have their full size and need a
GPU.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from itertools import islice, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from ablation_sets import SETS, Set, Variant

from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.text.corpora import TINY_SHAKESPEARE, load_corpus

ROOT = Path(__file__).parents[1]
FIT = [sys.executable, str(ROOT / "benchmarks" / "model_variants.py"), "fit"]
FIRST_SEED = 1337
TEACHER, TEACHER_SEEDS = "teachers", (1, 2, 3, 4)
TITLES = ("variant", "val loss", "seeds", "seconds of training")


class Result(NamedTuple):
    """The lowest val loss of a run, and how long it trained."""

    val_loss: float
    seconds: float


def train(config: str, options: list[str], seed: int, folder: Path) -> Result:
    """Train one run, unless it is finished; exit if it fails."""
    config_path = ROOT / "configs" / config
    settings = "\n".join([config_path.read_text(encoding="utf-8"), *options])
    settings_file = folder / "settings.txt"
    if settings_file.exists() and settings_file.read_text(encoding="utf-8") != settings:
        sys.exit(f"{folder} holds a run with other settings: move it away, or use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    settings_file.write_text(settings, encoding="utf-8")
    checkpoint = last_checkpoint(folder)
    if not checkpoint or not is_finished(checkpoint):
        command = [*FIT, "--ckpt_path", str(checkpoint)]
        if not checkpoint:
            command = [*FIT, "--config", str(config_path), *options, f"--seed_everything={seed}"]
            command += ["--card=false", f"--trainer.default_root_dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        checkpoint = last_checkpoint(folder)
    if not checkpoint:
        sys.exit(f"the run in {folder} left no checkpoint")
    run = read(checkpoint)["callbacks"]["RunState"]
    return Result(min(val_loss for _, _, val_loss in run["history"]), run["seconds"])


def last_checkpoint(folder: Path) -> Path | None:
    """Return the last checkpoint of a run, if it has saved one."""
    return next(folder.glob("lightning_logs/version_*/checkpoints/last.ckpt"), None)


def read(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint, also of a variant, which ``read_checkpoint`` does not know."""
    content: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return content


def is_finished(checkpoint: Path) -> bool:
    """Return whether a checkpoint is of its run's last step, with its evaluation."""
    config = yaml.safe_load((checkpoint.parents[1] / "config.yaml").read_text(encoding="utf-8"))
    step = config["trainer"]["max_steps"]
    content = read(checkpoint)
    evaluated = [evaluation[0] for evaluation in content["callbacks"]["RunState"]["history"]]
    return bool(content["global_step"] == step and step in evaluated)


def train_set(
    chosen: Set, options: list[str], n_seeds: int, jobs: int, out: Path
) -> Iterator[tuple[str, list[Result]]]:
    """Yield each variant's name and the results of its runs; the teachers' first, if there are any.

    Args:
        chosen: the set.
        options: for ``fit``, after those of the set and the variant.
        n_seeds: runs of each variant.
        jobs: runs at a time.
        out: folder of the runs.
    """
    seeds = range(FIRST_SEED, FIRST_SEED + n_seeds)
    variants = {TEACHER: Variant(), **chosen.variants}
    folders = {name: out / "".join(c if c.isalnum() else "_" for c in name) for name in variants}

    def run(arguments: tuple[str, int]) -> Result:
        name, seed = arguments
        given = [*chosen.options, *variants[name].options, *options]
        if variants[name].distilled:
            lasts = [last_checkpoint(folders[TEACHER] / str(n)) for n in TEACHER_SEEDS]
            teachers = [str(last.with_name("best.safetensors")) for last in lasts if last]
            given.append(f"--teachers={json.dumps(teachers)}")
        return train(chosen.config, given, seed, folders[name] / str(seed))

    with ThreadPoolExecutor(jobs) as pool:
        try:
            if any(variant.distilled for variant in chosen.variants.values()):
                yield TEACHER, list(pool.map(run, product([TEACHER], TEACHER_SEEDS)))
            results = pool.map(run, product(chosen.variants, seeds))
            for name in chosen.variants:
                yield name, list(islice(results, n_seeds))
        finally:
            pool.shutdown(cancel_futures=True)  # start no run after a failure or Ctrl-C


def corpus_options(out: Path, tune: bool, train_share: float) -> list[str]:
    """Write another corpus and return the options that select it.

    Args:
        out: folder to write it to.
        tune: whether the last tenth of the train split replaces the val split.
        train_share: share of the train split to keep.
    """
    text = load_corpus(TINY_SHAKESPEARE).text
    n = int(0.9 * len(text))
    train, val = text[:n], text[n:]
    if tune:
        m = int(0.9 * n)
        train, val = train[:m], train[m:]
    train = train[: int(train_share * len(train))]
    path = out / "text.txt"
    path.write_text(train + val, encoding="utf-8")
    fraction = (len(val) - 0.5) / (len(train) + len(val))  # rounds to this very split
    return [f"--data.corpus={path}", f"--data.val_fraction={fraction!r}"]


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=SETS, default="quickstart")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--steps", type=int, help="of each run (default: the variant's)")
    parser.add_argument("--tune", action="store_true", help="keep the val split unseen")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("ablations"), help="folder of the runs")
    options = parser.parse_args()
    if options.jobs < 1 or options.seeds < 1:
        parser.error("--jobs and --seeds must be at least 1")
    return options


def main() -> None:
    """Train the missing runs and print the table."""
    options = parse()
    chosen = SETS[options.set]
    steps = f"-{options.steps}" if options.steps else ""
    out = options.out.resolve() / (options.set + steps + "-tune" * options.tune)
    out.mkdir(parents=True, exist_ok=True)
    fit_options = []
    if options.tune or chosen.train_share < 1:
        fit_options += corpus_options(out, options.tune, chosen.train_share)
    if options.steps:
        for name in ("max_steps", "val_check_interval"):
            fit_options.append(f"--trainer.{name}={options.steps}")
    if options.jobs > 1:
        threads = max((os.cpu_count() or 1) // options.jobs, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    rows = []
    for name, results in train_set(chosen, fit_options, options.seeds, options.jobs, out):
        losses, seconds = zip(*results, strict=True)
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        loss, time = f"{statistics.fmean(losses):.4f}{spread}", f"{statistics.median(seconds):.0f}"
        rows.append((name, loss, str(len(losses)), time))
        print(*rows[-1], sep="  ", flush=True)
    machine = f"{provenance.machine(torch.device(best_device()))}; {provenance.versions()}"
    print(f"\n{machine}; {provenance.git_state()}; {date.today()}\n")
    print(table(TITLES, rows))


if __name__ == "__main__":
    main()
