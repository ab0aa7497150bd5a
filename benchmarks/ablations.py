"""What each ingredient buys: a set of variants with several seeds, as a table.

python benchmarks/ablations.py [--set quickstart] [--seeds 3] [--steps N] [--tune] [--jobs 1]
    [--out FOLDER]

A variant is a config and the options that change it, and maybe a change of the model's own code
(benchmarks/model_variants.py); each run is `python cli.py fit`, in a folder of its own below
--out. A run that was stopped goes on where it was, and one that is done is not run again, so that
more seeds or variants cost only what is new. With --tune the last tenth of the *train* split
takes the place of the val split, which then stays unseen: choose by that. With --jobs 2 two run at
a time, each with its share of the CPU's cores: done sooner, but their seconds mean less.

The sets `quickstart`, `ingredients`, `rates`, `best` and `regularisers` are of a size for a CPU.
The last two keep, of gpt10m_best.yaml, how many characters there are for a parameter, and how
often each is seen: a thirtieth of the parameters, of the train split and of what it trains on.
`fast` is the ingredients of gpt10m_fast.yaml, and `full` is gpt10m_best.yaml, at their size: for a
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
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import islice, product
from pathlib import Path

import torch

from nanogpt.hardware import best_device
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.text.corpora import TINY_SHAKESPEARE, load_corpus

ROOT = Path(__file__).parents[1]
FIRST_SEED = 1337
TEACHERS = (1, 2, 3, 4)  # their seeds
GPT = ["--model.architecture=gpt", "--model.init=normal"]
ADAMW = ["--model.optimizer=adamw", "--model.learning_rate=2e-3"]
# the small GPT that a well-known repository trains on a CPU: 2,000 steps of 12 x 64 characters
PLAIN = [
    *(*GPT, "--model.optimizer=adamw", "--model.learning_rate=1e-3", "--model.schedule=cosine"),
    *("--model.warmup_steps=100", "--model.betas=[0.9,0.99]", "--model.weight_decay=0.1"),
    *("--data.batch_size=12", "--data.replacement=true"),
    *("--trainer.max_steps=2000", "--trainer.val_check_interval=2000"),
]
# as gpt10m.yaml, with a learning rate for its size; each character is seen 65 times, as in the
# 4,000 steps after which the reference is at its best
REFERENCE = [
    *("--model.architecture=gpt", "--model.init=default", "--model.optimizer=adamw"),
    *("--model.learning_rate=1e-3", "--model.betas=[0.9,0.999]", "--model.weight_decay=0.01"),
    *("--model.schedule=constant", "--model.dropout=0.2", "--data.replacement=true"),
    *("--model.noise=null", "--trainer.max_steps=1920"),
]
# of what gpt10m_best.yaml is: as many characters for a parameter, each seen as often
THIRTIETH = [
    *("--model.n_layer=3", "--model.n_head=3", "--model.n_embd=96", "--model.block_size=64"),
    *("--model.muon_learning_rate=0.03", "--data.batch_size=16"),
    *("--trainer.max_steps=720", "--trainer.val_check_interval=72"),
]
TAUGHT = ["--model.dropout=0.0", "--model.noise=0.0"]
AVERAGED = [
    "--trainer.callbacks+=EMAWeightAveraging",
    "--trainer.callbacks.init_args.decay=0.97",
]


@dataclass(frozen=True)
class Variant:
    """A config's run with options of its own, and maybe a change of the model's code.

    One that is ``taught`` learns from runs of its set's config, the same ones for each seed.
    """

    options: list[str] = field(default_factory=list)
    change: str = ""
    taught: bool = False


# what is there to keep a modern GPT steady
STEADIERS = {
    "no norm on queries and keys": Variant(change="qk-norm"),
    "zero init -> PyTorch's": Variant(change="zero-init"),
    "no cap on logits": Variant(change="logit-cap"),
}
# of one that Muon trains
INGREDIENTS = {
    "-> plain GPT": Variant(GPT),
    "Muon -> AdamW 2e-3 for all": Variant(ADAMW),
    "-> plain GPT, Muon -> AdamW 2e-3": Variant([*GPT, *ADAMW]),
    "rotary -> learned positions": Variant(change="rotary"),
    "squared ReLU -> ReLU": Variant(change="relu"),
    "squared ReLU -> GELU": Variant(change="gelu"),
    "squared ReLU -> SwiGLU": Variant(change="swiglu"),
    **STEADIERS,
    "norms of blocks with weights": Variant(change="weighted-norms"),
    "LayerNorm -> RMSNorm": Variant(change="rms-norm"),
    "without replacement -> with": Variant(["--data.replacement=true"]),
    "linear -> cosine": Variant(["--model.schedule=cosine"]),
    "linear -> constant": Variant(["--model.schedule=constant"]),
    "with a warm-up of 50 steps": Variant(["--model.warmup_steps=50"]),
    "5% noise in what is read": Variant(["--model.noise=0.05"]),
    "weight decay of 0.3": Variant(["--model.weight_decay=0.3"]),
    "with stochastic depth, 10%": Variant(change="stochastic-depth"),
}


@dataclass(frozen=True)
class Set:
    """Variants of a config, which share some options and learn from a share of the train split."""

    config: str
    variants: dict[str, Variant]
    options: list[str] = field(default_factory=list)
    share: float = 1.0


SETS = {
    "quickstart": Set(
        "quickstart.yaml",
        {
            "plain GPT, 2,000 steps of 12 windows": Variant(PLAIN),
            "quickstart": Variant(),
        },
    ),
    "ingredients": Set(
        "quickstart.yaml",
        {
            "quickstart": Variant(),
            "no token shift": Variant(["--model.architecture=modern"]),
            **INGREDIENTS,
        },
        ["--trainer.max_steps=300", "--trainer.val_check_interval=300"],
    ),
    "rates": Set(  # three times those of the config
        "quickstart.yaml",
        {"quickstart": Variant(), **STEADIERS},
        [
            *("--trainer.max_steps=300", "--trainer.val_check_interval=300"),
            *("--model.muon_learning_rate=0.09", "--model.learning_rate=9e-3"),
        ],
    ),
    "fast": Set(
        "gpt10m_fast.yaml",
        {
            "gpt10m_fast": Variant(),
            "with token shift": Variant(["--model.architecture=shifted"]),
            "dropout 0.0": Variant(["--model.dropout=0.0"]),
            "dropout 0.2": Variant(["--model.dropout=0.2"]),
            **INGREDIENTS,
        },
    ),
    "best": Set(
        "gpt10m_best.yaml",
        {
            "as gpt10m.yaml, 1,920 steps": Variant(REFERENCE),
            "gpt10m_best": Variant(),
            "taught by four of those": Variant(TAUGHT, taught=True),
        },
        THIRTIETH,
        share=0.03,
    ),
    "regularisers": Set(
        "gpt10m_best.yaml",
        {
            "gpt10m_best": Variant(),
            "dropout 0.0": Variant(["--model.dropout=0.0"]),
            "dropout 0.2": Variant(["--model.dropout=0.2"]),
            "no noise": Variant(["--model.noise=0.0"]),
            "10% noise": Variant(["--model.noise=0.1"]),
            "no weight decay": Variant(["--model.weight_decay=0.0"]),
            "with stochastic depth, 10%": Variant(change="stochastic-depth"),
            "with averaged weights, 0.97": Variant(AVERAGED),
            "with token shift": Variant(["--model.architecture=shifted"]),
            "1,080 steps": Variant(["--trainer.max_steps=1080"]),
            "without replacement -> with": Variant(["--data.replacement=true"]),
            "Muon -> AdamW 2e-3 for all": Variant(ADAMW),
            **STEADIERS,
        },
        THIRTIETH,
        share=0.03,
    ),
    "full": Set(
        "gpt10m_best.yaml",
        {
            "gpt10m_best": Variant(),
            "dropout 0.2": Variant(["--model.dropout=0.2"]),
            "taught by four of the first": Variant(TAUGHT, taught=True),
        },
    ),
}
TEACHER = "teachers"
TITLES = ("variant", "val loss", "seeds", "seconds of training")


def train(config: str, variant: Variant, seed: int, folder: Path) -> tuple[float, float]:
    """Run a variant once, if need be; return its lowest val loss, and the seconds it trained."""
    begin = ["--config", str(ROOT / "configs" / config), *variant.options]
    begin += [f"--seed_everything={seed}", "--card=false"]
    begin += [f"--trainer.default_root_dir={folder}"]
    settings = "\n".join([Path(begin[1]).read_text(encoding="utf-8"), *variant.options])
    begun = folder / "begun"
    if begun.exists() and begun.read_text(encoding="utf-8") != settings:
        sys.exit(f"{folder} holds a run of other settings: move it away, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    begun.write_text(settings, encoding="utf-8")
    if not (folder / "done").exists():
        if last := last_checkpoint(folder):
            begin = ["--ckpt_path", str(last)]
        changed = [str(ROOT / "benchmarks" / "changed.py"), variant.change]
        program = changed if variant.change else [str(ROOT / "cli.py")]
        command = [sys.executable, *program, "fit", *begin]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 and "already: go on with" not in done.stderr:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        (folder / "done").touch()
    # not read_checkpoint, which knows only models that have all their ingredients
    run = torch.load(last_checkpoint(folder), map_location="cpu", weights_only=True)["run"]
    return min(val for _, _, val in run["history"]), run["seconds"]


def last_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint with which a variant's run goes on, if it has left one."""
    return next(folder.glob("lightning_logs/version_*/checkpoints/last.ckpt"), None)


def measured(
    chosen: Set, options: list[str], n_seeds: int, jobs: int, out: Path
) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield the name of each variant of a set, and the loss and the seconds of its runs."""
    seeds = range(FIRST_SEED, FIRST_SEED + n_seeds)
    variants = {TEACHER: Variant(), **chosen.variants}
    folders = {name: out / "".join(c if c.isalnum() else "_" for c in name) for name in variants}

    def run(of: tuple[str, int]) -> tuple[float, float]:
        name, seed = of
        variant = variants[name]
        given = [*chosen.options, *variant.options, *options]
        if variant.taught:
            lasts = [last_checkpoint(folders[TEACHER] / str(teacher)) for teacher in TEACHERS]
            teachers = [str(last.with_name("best.ckpt")) for last in lasts if last]
            given.append(f"--teachers={json.dumps(teachers)}")
        return train(
            chosen.config, replace(variant, options=given), seed, folders[name] / str(seed)
        )

    with ThreadPoolExecutor(jobs) as pool:
        try:
            if any(variant.taught for variant in chosen.variants.values()):
                yield TEACHER, list(pool.map(run, product([TEACHER], TEACHERS)))
            results = pool.map(run, product(chosen.variants, seeds))
            for name in chosen.variants:
                yield name, list(islice(results, n_seeds))
        finally:
            pool.shutdown(cancel_futures=True)  # none begins after a failure or Ctrl-C


def corpus(out: Path, tune: bool, share: float) -> list[str]:
    """Return the options for another text: of the train split a share, or without its last tenth.

    With ``tune`` the val split is left out: it is not even read.
    """
    text = load_corpus(TINY_SHAKESPEARE).text
    n = int(0.9 * len(text))
    train, val = text[:n], text[n:]
    if tune:
        m = int(0.9 * n)
        train, val = train[:m], train[m:]
    train = train[: int(share * len(train))]
    path = out / "text.txt"
    path.write_text(train + val, encoding="utf-8")
    fraction = (len(val) - 0.5) / (len(train) + len(val))  # which rounds to just this split
    return [f"--data.corpus={path}", f"--data.val_fraction={fraction!r}"]


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=SETS, default="quickstart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of each run, in place of its own")
    parser.add_argument("--tune", action="store_true", help="on a slice of the train split")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("ablations"))
    options = parser.parse_args()
    if options.jobs < 1 or options.seeds < 1:
        parser.error("--jobs and --seeds are at least 1")
    chosen = SETS[options.set]
    steps = f"-{options.steps}" if options.steps else ""
    out = options.out.resolve() / (options.set + steps + "-tune" * options.tune)
    out.mkdir(parents=True, exist_ok=True)
    last = []
    if options.tune or chosen.share < 1:
        last += corpus(out, options.tune, chosen.share)
    if options.steps:
        last += [f"--trainer.{n}={options.steps}" for n in ("max_steps", "val_check_interval")]
    if options.jobs > 1:
        threads = max((os.cpu_count() or 1) // options.jobs, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    rows = []
    for name, runs in measured(chosen, last, options.seeds, options.jobs, out):
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
