"""The reference system's own curves, to hold a run against.

They are facts read off its logs. Each lies in ``lightning_logs/reference/NAME/`` twice: as
``curve.csv`` and, for TensorBoard, as the same numbers in an event file.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nanogpt.text import corpora

FOLDER = Path(__file__).parents[2] / "lightning_logs" / "reference"


@dataclass(frozen=True)
class Losses:
    """One evaluation: mean losses in nats per character after ``step`` optimizer steps."""

    step: int
    train: float
    val: float


def curve_names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the curves that are there."""
    return sorted(path.parent.name for path in folder.glob("*/curve.csv"))


def read_curve(name: str, folder: Path = FOLDER) -> list[Losses]:
    """Return the reference's evaluations of ``bigram`` or ``gpt10m``; none if it isn't there."""
    path = folder / name / "curve.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [
            Losses(int(row["step"]), float(row["train_loss"]), float(row["val_loss"]))
            for row in rows
        ]


def best(history: Sequence[Losses]) -> Losses:
    """Return the evaluation of the lowest val loss, of those after step 0 if there are any."""
    trained = [losses for losses in history if losses.step]
    return min(trained or history, key=lambda losses: losses.val)


def expected(reference: str | None, sha256: str) -> list[Losses]:
    """Return the curve to compare a run with: none if it was trained on another text."""
    return read_curve(reference) if reference and sha256 == corpora.SHA256 else []


def comparison(run: Sequence[Losses], reference: Sequence[Losses]) -> str:
    """Return a table of the steps that both have, or nothing if there are none."""
    theirs = {losses.step: losses for losses in reference}
    both = [(ours, theirs[ours.step]) for ours in run if ours.step in theirs]
    if not both:
        return ""
    lines = ["  step    train  reference      val  reference  difference"]
    for our, ref in both:
        lines.append(
            f"{our.step:6d} {our.train:8.4f} {ref.train:10.4f} {our.val:8.4f} {ref.val:10.4f}"
            f" {our.val - ref.val:+11.4f}"
        )
    return "\n".join(lines)
