"""``ladder``: train the stages from a bigram to a GPT, one after the other, and compare them."""

import argparse
import shlex
import statistics
import textwrap
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from nanogpt.atomic import write_atomically
from nanogpt.errors import UserError
from nanogpt.insight import provenance
from nanogpt.insight.model_card import table
from nanogpt.insight.reference import best_losses
from nanogpt.notices import escape_controls, print_text, program
from nanogpt.resources import CONFIGS
from nanogpt.runs import LOGS
from nanogpt.training.stage_cli import StageRun, fit_stage

FIRST_SEED = 1337
TITLES = ("stage", "parameters", "val loss", "change", "what it adds")
RESERVED = (
    *("--config", "-c", "--print_config", "--ckpt_path", "--seed_everything"),
    *("--trainer.default_root_dir", "--trainer.logger"),
)


@dataclass(frozen=True)
class Result:
    """A trained stage.

    Args:
        name: its number and name, such as ``02 average``.
        adds: what it adds to the previous stage.
        explanation: why it may not lower the loss, or "".
        losses: the best val loss of each seed.
        last_run: the run of the last seed.
        folder: folder of that run.
    """

    name: str
    adds: str
    explanation: str
    losses: list[float]
    last_run: StageRun
    folder: Path

    @property
    def mean(self) -> float:
        """The mean loss over the seeds."""
        return statistics.fmean(self.losses)

    def row(self, previous: "Result | None") -> tuple[str, ...]:
        """Return its row of the table; ± is the standard deviation over the seeds."""
        spread = f" ± {statistics.stdev(self.losses):.4f}" if len(self.losses) > 1 else ""
        change = f"{self.mean - previous.mean:+.4f}" if previous else ""
        parameters, loss = f"{self.last_run.parameters:,}", f"{self.mean:.4f}{spread}"
        return (self.name, parameters, loss, change, self.adds)


def run(options: list[str]) -> None:
    """Train the stages, print a row of the table after each, and write the table and a chart."""
    stages, n_seeds, fit_options = parse(options)
    root = LOGS / "ladder"
    used = [int(f.name[8:]) for f in root.glob("version_*") if f.name[8:].isdecimal()]
    folder = root / f"version_{max(used, default=-1) + 1}"
    width = 8 if n_seeds == 1 else 15
    start, results = time.monotonic(), list[Result]()
    try:
        for stage in stages:
            previous = results[-1] if results else None
            results.append(train(stage, folder, n_seeds, fit_options, announce=previous is None))
            row = results[-1].row(previous)
            for cells in [row] if previous else [TITLES, row]:
                line = "{:16}  {:>10}  {:>{width}}  {:>7}  {}".format(*cells, width=width)
                print(line, flush=True)
    finally:
        if results:
            report(results, folder, time.monotonic() - start, options)


def parse(options: list[str]) -> tuple[list[Path], int, list[str]]:
    """Return the configs of the stages to train, the number of seeds, and ``fit``'s options."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} ladder",
        allow_abbrev=False,
        exit_on_error=False,
        description="Train the stages of the ladder, one after the other. All other options are "
        "passed to the `fit` of every stage, such as --data.corpus my.txt.",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs per stage, from seed 1337")
    parser.add_argument("--stages", help="train only these, such as 3,4 (default: all)")
    try:
        given, rest = parser.parse_known_args(options)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if given.seeds < 1:
        raise UserError(f"--seeds must be at least 1, not {given.seeds}")
    for option in (option.partition("=")[0] for option in rest):
        if option in RESERVED:
            raise UserError(f"the ladder sets {option} itself: leave it out")
    stages = {path.stem[:2].lstrip("0"): path for path in sorted(CONFIGS.glob("ladder/*.yaml"))}
    chosen = set(stages)
    if given.stages is not None:
        chosen = {number.lstrip("0") for number in given.stages.split(",")}
    if not chosen <= set(stages):
        raise UserError(
            f"--stages takes numbers from 1 to {len(stages)}, such as 3,4, not {given.stages!r}"
        )
    return [path for number, path in stages.items() if number in chosen], given.seeds, rest


def train(
    config: Path, folder: Path, n_seeds: int, fit_options: list[str], announce: bool
) -> Result:
    """Train a stage with each seed; raise UserError if a run has no evaluation."""
    lines = config.read_text(encoding="utf-8").splitlines()
    adds, *explanation = (line.lstrip("# ") for line in lines[: lines.index("model:")])
    name, losses = config.stem.replace("_", " "), list[float]()
    for seed in range(FIRST_SEED, FIRST_SEED + n_seeds):
        run_folder = folder / (config.stem + (f"_{seed}" if n_seeds > 1 else ""))
        options = ["--config", str(config), *fit_options, "--seed_everything", str(seed)]
        done = fit_stage(options, name, run_folder, announce and seed == FIRST_SEED)
        if not done.history:
            raise UserError(
                "the ladder compares val losses, and these options disable evaluation: leave "
                "--trainer.limit_val_batches out"
            )
        losses.append(best_losses(done.history).val)
    adds = adds.partition(" (")[0]  # the number of parameters
    return Result(name, adds, " ".join(explanation), losses, done, run_folder)


def report(results: list[Result], folder: Path, seconds: float, options: list[str]) -> None:
    """Print why a stage does not lower the loss, and write ``ladder.md`` and ``ladder.png``."""
    from nanogpt.insight.plots import plot_ladder, save_figure

    pairs = list(zip([None, *results], results, strict=False))
    explanations = [
        f"{result.name} does not lower the val loss. {result.explanation}".strip()
        for previous, result in pairs
        if previous and result.mean >= previous.mean
    ]
    print("".join(f"\n{textwrap.fill(explanation, 100)}\n" for explanation in explanations))
    names = [result.name.replace(" ", "\n") for result in results]
    first = results[0].last_run
    figure = plot_ladder(names, [result.losses for result in results], first.ngrams)
    save_figure(figure, folder / "ladder.png")
    corpus, replaced = first.corpus, first.corpus.stands_in_for
    page = [
        "# The ladder",
        "![best val loss of each stage](ladder.png)",
        table(TITLES, [result.row(previous) for previous, result in pairs]),
        *explanations,
        f"Corpus: {corpus.name}{f' instead of {replaced}' if replaced else ''}, "
        f"SHA-256 `{corpus.sha256}`.",
        f"`{program()} {shlex.join(['ladder', *options])}`: {len(results[0].losses)} seed(s), "
        f"{seconds:.0f} s. {provenance.machine(first.device)}; {provenance.versions()}; "
        f"{provenance.git_state()}; {date.today()}.",
    ]
    content = escape_controls("\n\n".join(page) + "\n").encode(errors="backslashreplace")
    write_atomically(folder / "ladder.md", content)
    print_text(
        f"{seconds:.0f} s in total\n"
        f"table        {folder / 'ladder.md'}\n"
        f"chart        {folder / 'ladder.png'}\n"
        f"curves       tensorboard --logdir {folder}\n"
        f"text         {program()} predict --ckpt_path {results[-1].folder}"
    )
