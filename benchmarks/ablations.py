"""What each ingredient buys: a set of variants with several seeds, as a table.

python benchmarks/ablations.py [--set quickstart] [--seeds 3] [--tune] [--out FOLDER]

A variant is a config and the options that change it; each run is `python cli.py fit`, in a folder
of its own below --out. A run that was stopped goes on where it was, and one that is done is not
run again, so that more seeds or variants cost only what is new. With --tune the last tenth of the
*train* split takes the place of the val split, which then stays unseen: choose by that.
"""

import argparse
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from nanogpt.generation.loading import read_checkpoint
from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.insight.card import table
from nanogpt.text.corpora import TINY_SHAKESPEARE, load_corpus

ROOT = Path(__file__).parents[1]
FIRST_SEED = 1337
GPT = ["--model.architecture=gpt", "--model.init=normal"]
ADAMW = ["--model.optimizer=adamw", "--model.learning_rate=2e-3"]
COSINE = ["--model.schedule=cosine", "--model.warmup_steps=50"]
# the small GPT that a well-known repository trains on a CPU: 2,000 steps of 12 x 64 characters
PLAIN = [
    *(*GPT, "--model.optimizer=adamw", "--model.learning_rate=1e-3", "--model.schedule=cosine"),
    *("--model.warmup_steps=100", "--model.betas=[0.9,0.99]", "--model.weight_decay=0.1"),
    *("--data.batch_size=12", "--trainer.max_steps=2000", "--trainer.val_check_interval=2000"),
]
SETS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "quickstart": (
        "quickstart.yaml",
        {
            "plain GPT, 2,000 steps of 12 windows": PLAIN,
            "GPT, AdamW, cosine": [*GPT, *ADAMW, *COSINE],
            "modern, AdamW, cosine": [*ADAMW, *COSINE],
            "modern, AdamW, linear": ADAMW,
            "GPT, Muon, linear": GPT,
            "modern, Muon, linear: quickstart": [],
        },
    ),
}
TITLES = ("variant", "val loss", "seeds", "seconds of training")


def train(config: str, options: list[str], seed: int, folder: Path) -> tuple[float, float]:
    """Run a variant once, if need be; return its last val loss, and the seconds it trained."""
    last = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    if not (folder / "done").exists():
        begin = ["--config", str(ROOT / "configs" / config), *options, f"--seed_everything={seed}"]
        begin += ["--card=false", f"--trainer.default_root_dir={folder}"]
        if last.is_file():
            begin = ["--ckpt_path", str(last)]
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / "cli.py"), "fit", *begin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "already" not in done.stderr:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        (folder / "done").touch()
    run = read_checkpoint(last)["run"]
    return run["history"][-1][2], run["seconds"]


def tuning_text(out: Path) -> list[str]:
    """Return the options that leave the val split out: its text is not even read."""
    text = load_corpus(TINY_SHAKESPEARE).text
    path = out / "train_split.txt"
    path.write_text(text[: int(0.9 * len(text))], encoding="utf-8")
    return [f"--data.corpus={path}"]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=SETS, default="quickstart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tune", action="store_true", help="on a slice of the train split")
    parser.add_argument("--out", type=Path, default=Path("ablations"))
    options = parser.parse_args()
    config, variants = SETS[options.set]
    out = options.out.resolve() / (options.set + "-tune" * options.tune)
    out.mkdir(parents=True, exist_ok=True)
    extra = tuning_text(out) if options.tune else []
    rows = []
    for name, changes in variants.items():
        folder = out / "".join(c if c.isalnum() else "_" for c in name)
        seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
        runs = [train(config, [*changes, *extra], seed, folder / str(seed)) for seed in seeds]
        losses, seconds = zip(*runs, strict=True)
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        loss, time = f"{statistics.fmean(losses):.4f}{spread}", f"{statistics.median(seconds):.0f}"
        rows.append((name, loss, str(len(losses)), time))
        print(*rows[-1], sep="  ", flush=True)
    machine = f"{provenance.machine(torch.device(best_device()))}; {provenance.versions()}"
    print(f"\n{machine}; {provenance.git_state()}; {date.today()}\n")
    print(table(TITLES, rows))


if __name__ == "__main__":
    main()
