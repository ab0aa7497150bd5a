"""The loss curves of the reference implementation, to compare a run with.

The numbers were read from its logs. Each curve is stored twice in ``REFERENCE_CURVES/NAME/``: as
``curve.csv`` and as a TensorBoard event file.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from nanogpt.resources import REFERENCE_CURVES
from nanogpt.text import corpora


@dataclass(frozen=True)
class Losses:
    """One evaluation: mean losses in nats per character after ``step`` optimizer steps."""

    step: int
    train: float
    val: float


def read_curve(name: str) -> list[Losses]:
    """Return the evaluations of the reference's ``bigram`` or ``gpt10m``; [] for other names."""
    path = REFERENCE_CURVES / name / "curve.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [
            Losses(int(row["step"]), float(row["train_loss"]), float(row["val_loss"]))
            for row in rows
        ]


def reference_curve(name: str | None, sha256: str) -> list[Losses]:
    """Return the curve to compare a run with; [] if the run's corpus, by checksum, is another."""
    return read_curve(name) if name and sha256 == corpora.SHA256 else []


def best_losses(history: Sequence[Losses]) -> Losses:
    """Return the evaluation with the lowest val loss, ignoring step 0 if there are others."""
    trained = [losses for losses in history if losses.step]
    return min(trained or history, key=lambda losses: losses.val)


def loss_table(history: Sequence[Losses]) -> str:
    """Return a table of evaluations."""
    rows = [f"{losses.step:6d} {losses.train:8.4f} {losses.val:8.4f}" for losses in history]
    return "\n".join(["  step    train      val", *rows])


def comparison_table(run: Sequence[Losses], reference: Sequence[Losses]) -> str:
    """Return a table of the steps at which both were evaluated; "" if there are none."""
    expected = {losses.step: losses for losses in reference}
    rows = [
        f"{ours.step:6d} {ours.train:8.4f} {ref.train:10.4f} {ours.val:8.4f} {ref.val:10.4f}"
        f" {ours.val - ref.val:+11.4f}"
        for ours in run
        if (ref := expected.get(ours.step))
    ]
    titles = "  step    train  reference      val  reference  difference"
    return "\n".join([titles, *rows]) if rows else ""
