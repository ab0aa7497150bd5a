"""Train the shipped configs at their full size, and keep what shows the results.

python benchmarks/full_size.py [NAME ...] [--out full_size]    # trains what is missing
python benchmarks/full_size.py --list                          # what is missing, and its hours here
python benchmarks/full_size.py --render                        # only the table in docs/results.md

One run follows the other. The command can be stopped at any time, also by a kill, and repeated: a
run resumes from its last checkpoint, and a finished one is not repeated. The runs are below --out.
Of a finished one, docs/results/NAME/ gets the log, config, card, curve and sample, and result.json;
weights are not kept. The table of docs/results.md is rendered from those files at the end. Train on
a machine without other work, from a commit without changes.
"""

import argparse
import csv
import json
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import training_loops
from ablations import is_finished, last_checkpoint, read
from baseline import config_path

from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "results.md"
START, END = "<!-- rendered by benchmarks/full_size.py -->", "<!-- end of the rendered part -->"
TITLES = ("run", "steps", "train", "val", "seeds", "minutes", "machine", "commit")


@dataclass(frozen=True)
class Run:
    """A run of a config.

    Args:
        config: name of a shipped config, or path of a YAML file.
        seed: random seed.
        options: further options of ``fit``.
        sample: number of characters to sample.
    """

    config: str
    seed: int = 1337
    options: tuple[str, ...] = ()
    sample: int = 1000

    @property
    def name(self) -> str:
        """Its folder: the config and the seed."""
        return f"{Path(self.config).stem}-{self.seed}"

    @property
    def command(self) -> list[str]:
        """The command line after ``cli.py``, without the folder."""
        return ["fit", "--config", self.config, f"--seed_everything={self.seed}", *self.options]


SEEDS = (1337, 1338, 1339)
RUNS = (
    Run("gpt10m", sample=10_000),
    Run("gpt_small"),
    *(Run("gpt10m_best", seed) for seed in SEEDS),
    *(Run("gpt10m_fast", seed) for seed in SEEDS),
    *(Run("quickstart", seed) for seed in SEEDS),
    Run("bigram"),
)


def train(run: Run, out: Path) -> Path:
    """Train a run, or resume it, and return its folder; exit if it is stopped or fails."""
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(folder)
    if not checkpoint or not is_finished(checkpoint):
        options = ["fit", "--ckpt_path", str(checkpoint)]
        if not checkpoint:
            options = [*run.command, "--trainer.default_root_dir", str(folder)]
        with (folder / "log.txt").open("a", encoding="utf-8") as log:
            command = [sys.executable, str(ROOT / "cli.py"), *options]
            child = subprocess.Popen(command, stdout=log, stderr=log)
            before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child has it too, and saves
            code = child.wait()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, before)
        if code:
            last = (folder / "log.txt").read_text(encoding="utf-8").splitlines()[-1:]
            sys.exit(f"{run.name} ended with exit code {code}: {''.join(last)}")
        checkpoint = last_checkpoint(folder)
    assert checkpoint, "a finished run has a checkpoint"
    return checkpoint.parents[1]


def keep(run: Run, folder: Path, kept: Path, commit: str) -> None:
    """Copy what shows the result of a finished run, and sample from its best checkpoint."""
    state = read(folder / "checkpoints" / "last.ckpt")
    history = state["callbacks"]["RunState"]["history"]
    target = kept / run.name
    target.mkdir(parents=True, exist_ok=True)
    log = (folder.parents[1] / "log.txt").read_text(encoding="utf-8")
    (target / "log.txt").write_text(log.replace(f"{ROOT}/", ""), encoding="utf-8")
    for name in ("config.yaml", "card.md"):
        if (folder / name).is_file():  # a run that was killed in its last second has no card
            shutil.copyfile(folder / name, target / name)
    with (target / "curve.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("step", "train", "val"), *history])
    sample = ["predict", f"--ckpt_path={folder}", f"--max_new_tokens={run.sample}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *sample], capture_output=True, text=True, check=True
    )
    (target / "sample.txt").write_text(done.stdout, encoding="utf-8")
    step, train_loss, val_loss = min(history, key=lambda row: row[2])
    result = {
        "config": Path(run.config).stem,
        "command": shlex.join(["python", "cli.py", *run.command]),
        "seed": run.seed,
        "steps": state["global_step"],
        "step": step,
        "train": train_loss,
        "val": val_loss,
        "minutes": state["callbacks"]["RunState"]["seconds"] / 60,
        "machine": provenance.machine(torch.device(best_device())),
        "versions": provenance.versions(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }
    (target / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def finished(kept: Path) -> dict[str, dict[str, Any]]:
    """Return the results of all kept runs, by name."""
    paths = sorted(kept.glob("*/result.json"))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def render(kept: Path, runs: Iterable[Run] = RUNS) -> str:
    """Return the rendered part of the page: a row for each config, and what is missing."""
    results, rows = finished(kept), []
    for config in dict.fromkeys(result["config"] for result in results.values()):
        names = [name for name in results if results[name]["config"] == config]
        group = [results[name] for name in names]
        rows.append((
            f"[{config}](results/{names[0]})",
            ", ".join(sorted({str(result["steps"]) for result in group})),
            *(spread([result[key] for result in group]) for key in ("train", "val")),
            ", ".join(str(result["seed"]) for result in group),
            f"{statistics.median(result['minutes'] for result in group):.1f}",
            *(", ".join(sorted({r[key] for r in group})) for key in ("machine", "commit")),
        ))  # fmt: skip
    missing = [run.name for run in runs if run.name not in results]
    line = f"Missing: {', '.join(missing)}." if missing else "No run is missing."
    return "\n\n".join([START, table(TITLES, rows), line, END])


def spread(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"


def write_page(page: Path, kept: Path) -> None:
    """Replace the rendered part of the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{render(kept)}{after}", encoding="utf-8")


def print_list(runs: Iterable[Run], out: Path) -> None:
    """Print the state of each run and, unless it is finished, the hours that it takes here."""
    results = finished(KEPT)
    for run in runs:
        if run.name in results:
            print(f"{run.name:20} finished: val {results[run.name]['val']:.4f}", flush=True)
            continue
        path = config_path(run.config)
        last = last_checkpoint(out / run.name)
        steps = training_loops.Sizes.from_config(path).max_steps
        done = read(last)["global_step"] if last else 0
        rounds = training_loops.run("fit", path, 1, 1.0).get("rounds", [float("nan")])
        hours = (steps - done) * rounds[0] / 3600
        print(f"{run.name:20} step {done:,} of {steps:,}: {hours:.1f} hours are left", flush=True)


def main(arguments: Sequence[str]) -> None:
    """Train the missing runs and render the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of configs (default: all)")
    parser.add_argument("--out", type=Path, default=Path("full_size"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="only print what is missing")
    parser.add_argument("--render", action="store_true", help="only render the page")
    options = parser.parse_args(arguments)
    runs = [run for run in RUNS if not options.names or run.config in options.names]
    if options.list:
        print_list(runs, options.out)
        return
    commit = provenance.git_state()  # before the page changes
    for run in [] if options.render else runs:
        if run.name not in finished(KEPT):
            print(f"{run.name} …", flush=True)
            keep(run, train(run, options.out), KEPT, commit)
    write_page(PAGE, KEPT)


if __name__ == "__main__":
    main(sys.argv[1:])
