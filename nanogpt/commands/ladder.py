"""``python cli.py ladder``: the story of the transformer, run rung by rung."""

import argparse
import io
import shlex
import statistics
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from nanogpt.atomic import write_atomically
from nanogpt.errors import UserError
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import best
from nanogpt.models import count_parameters
from nanogpt.runs import LOGS
from nanogpt.text.corpora import Corpus
from nanogpt.training import lightning_cli as cli
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel

CONFIGS = Path(__file__).parents[2] / "configs" / "ladder"
FIRST_SEED = 1337
TITLES = ("rung", "parameters", "val loss", "change", "what it adds")
OURS = (
    *("--config", "-c", "--print_config", "--ckpt_path", "--seed_everything"),
    *("--trainer.default_root_dir", "--trainer.logger"),
)


@dataclass(frozen=True)
class Rung:
    """One config of the ladder, and what its first lines say: what it adds, and perhaps why."""

    path: Path

    @property
    def name(self) -> str:
        """Number and name, such as ``02 average``."""
        return self.path.stem.replace("_", " ")

    @property
    def comments(self) -> list[str]:
        """The lines that the config begins with."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line.lstrip("# ") for line in lines[: lines.index("model:")]]

    @property
    def adds(self) -> str:
        """What it adds to the rung below."""
        return self.comments[0].partition(" (")[0]

    @property
    def why(self) -> str:
        """Why it may not lower the loss."""
        return " ".join(self.comments[1:])


@dataclass(frozen=True)
class Result:
    """A rung that has been run: its size, and the best val loss of each seed."""

    rung: Rung
    parameters: int
    losses: list[float]
    ngrams: list[NGram]
    corpus: Corpus
    device: torch.device
    folder: Path  # of its last run

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.losses)

    def row(self, below: "Result | None") -> tuple[str, ...]:
        """Return the cells of its row in the table; the spread is the standard deviation."""
        spread = f" ± {statistics.stdev(self.losses):.4f}" if len(self.losses) > 1 else ""
        change = f"{self.mean - below.mean:+.4f}" if below else ""
        loss = f"{self.mean:.4f}{spread}"
        return (self.rung.name, f"{self.parameters:,}", loss, change, self.rung.adds)


class RungCLI(cli.CLI):
    """Trains one rung in a folder of the ladder, and leaves the talking to the ladder."""

    folder: Path
    introduced = False  # whether a missing corpus has been announced

    def introduce(self, trainer: L.Trainer, model: LanguageModel, data: CharDataModule) -> None:
        """Announce what stands in for a missing corpus once, and not with every rung."""
        with redirect_stderr(io.StringIO()) if RungCLI.introduced else nullcontext():
            super().introduce(trainer, model, data)
        RungCLI.introduced = True

    def tensorboard(self, root: str) -> TensorBoardLogger:
        """Return the logger of a run in that folder."""
        return TensorBoardLogger(
            *(root, str(self.folder.parent), self.folder.name),
            default_hp_metric=False,
            flush_secs=10,
        )

    def after_fit(self) -> None:
        """Write the card."""
        self.write_card()


def run(options: list[str]) -> None:
    """Run all rungs, one after the other, and end in a table and a chart.

    Raises:
        UserError: for whatever the user can mend.
    """
    rungs, n_seeds, further = parse(options)
    folder = free_folder(LOGS / "ladder")
    widths = (16, 10, 8 if n_seeds == 1 else 15, 7, 0)
    begin, results = time.monotonic(), list[Result]()
    RungCLI.introduced = False
    try:
        for rung in rungs:
            below = results[-1] if results else None
            results.append(train(rung, folder, n_seeds, further))
            if below is None:
                print_row(TITLES, widths)
            print_row(results[-1].row(below), widths)
    finally:
        if results:
            conclude(results, folder, time.monotonic() - begin, options)


def parse(options: list[str]) -> tuple[list[Rung], int, list[str]]:
    """Return the rungs that are asked for, the number of seeds, and the options for ``fit``."""
    parser = argparse.ArgumentParser(
        prog="cli.py ladder",
        allow_abbrev=False,
        exit_on_error=False,
        description="Run the small stages of the story, configs/ladder/, one after the other. Any "
        "further option goes to the `fit` of every stage, such as --data.corpus my.txt.",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs of each stage, from seed 1337")
    parser.add_argument("--rungs", help="only these, by number, such as 3,4 (default: all)")
    try:
        given, rest = parser.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if given.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {given.seeds}")
    for option in rest:
        if option.partition("=")[0] in OURS:
            raise UserError(f"the ladder sets {option.partition('=')[0]} itself: leave it out")
    numbered = {int(path.stem[:2]): Rung(path) for path in sorted(CONFIGS.glob("*.yaml"))}
    if given.rungs is None:
        return list(numbered.values()), given.seeds, rest
    chosen = given.rungs.split(",")
    if not all(number.isdecimal() and int(number) in numbered for number in chosen):
        raise UserError(f"--rungs takes numbers from 1 to {max(numbered)}, such as 3,4")
    return [numbered[n] for n in sorted({int(number) for number in chosen})], given.seeds, rest


def train(rung: Rung, folder: Path, n_seeds: int, options: list[str]) -> Result:
    """Train a rung with each seed."""
    losses: list[float] = []
    for seed in range(FIRST_SEED, FIRST_SEED + n_seeds):
        RungCLI.folder = folder / (rung.path.stem + (f"_{seed}" if n_seeds > 1 else ""))
        RungCLI.title = rung.name
        fit = ["--config", str(rung.path), *options, "--seed_everything", str(seed)]
        with redirect_stdout(io.StringIO()):
            done = cli.run("fit", fit, RungCLI)
        if not done.recorder.history:
            raise UserError("the ladder compares evaluations: let every stage evaluate")
        losses.append(best(done.recorder.history).val)
    data, device = done.datamodule, done.trainer.strategy.root_device
    parameters = count_parameters(done.model.net)
    return Result(rung, parameters, losses, data.ngrams, data.corpus, device, RungCLI.folder)


def conclude(results: list[Result], folder: Path, seconds: float, options: list[str]) -> None:
    """Say which rungs do not lower the loss, and leave the table and the chart in the folder."""
    from nanogpt.insight.plots import ladder_picture, save

    pairs = list(zip([None, *results], results, strict=False))
    whys = [
        f"{rung.rung.name} does not lower the val loss. {rung.rung.why}".strip()
        for below, rung in pairs
        if below and rung.mean >= below.mean
    ]
    print("".join(f"\n{textwrap.fill(why, 100)}\n" for why in whys))
    names = [rung.rung.name.replace(" ", "\n") for rung in results]
    picture = ladder_picture(names, [rung.losses for rung in results], results[0].ngrams)
    save(picture, folder / "ladder.png")
    corpus = results[0].corpus
    command = shlex.join(["python", "cli.py", "ladder", *options])
    page = [
        "# The ladder",
        "![best val loss of every rung](ladder.png)",
        table(TITLES, [rung.row(below) for below, rung in pairs]),
        *whys,
        f"Corpus {corpus.name}, SHA-256 `{corpus.sha256}`"
        + (f", standing in for {corpus.stands_in_for}." if corpus.stands_in_for else "."),
        f"`{command}`: {len(results[0].losses)} seed(s), {seconds:.0f} s. "
        f"{provenance.machine(results[0].device)}; {provenance.versions()}; "
        f"{provenance.git_state()}; {date.today()}.",
    ]
    write_atomically(folder / "ladder.md", ("\n\n".join(page) + "\n").encode())
    print(
        f"{seconds:.0f} s in all\n"
        f"table        {folder / 'ladder.md'}\n"
        f"chart        {folder / 'ladder.png'}\n"
        f"curves       tensorboard --logdir {folder}\n"
        f"text         python cli.py predict --ckpt_path {results[-1].folder}"
    )


def free_folder(root: Path) -> Path:
    """Return the first free ``version_N`` in a folder."""
    taken = [int(f.name[8:]) for f in root.glob("version_*") if f.name[8:].isdecimal()]
    return root / f"version_{max(taken, default=-1) + 1}"


def print_row(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Print a row of the table as soon as there is one: the first and last cells to the left."""
    first, *middle, last = cells
    aligned = [cell.rjust(width) for cell, width in zip(middle, widths[1:], strict=False)]
    print("  ".join([first.ljust(widths[0]), *aligned, last]), flush=True)
