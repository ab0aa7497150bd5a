"""The reference's curves: their values, in both file formats, and the comparison with a run."""

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanogpt.insight import reference
from nanogpt.insight.reference import (
    REFERENCE_CURVES,
    Losses,
    comparison_table,
    loss_table,
    read_curve,
    reference_curve,
)
from nanogpt.text.corpora import SHA256

# number of evaluations, steps between them, the first evaluation and the last step
CURVES = {
    "bigram": (17, 300, Losses(0, 4.7305, 4.7241), 4800),
    "gpt10m": (10, 500, Losses(0, 4.2846, 4.2820), 4500),
}


@pytest.mark.parametrize(("name", "curve"), CURVES.items(), ids=CURVES)
def test_curve_is_complete(name: str, curve: tuple[int, int, Losses, int]) -> None:
    n, interval, first, last_step = curve
    rows = read_curve(name)
    assert [row.step for row in rows] == [interval * i for i in range(n)]
    assert (rows[0], rows[-1].step) == (first, last_step)
    assert all(row.train > 0 and row.val > 0 for row in rows)


def test_gpt10m_ends_with_the_published_losses() -> None:
    last = read_curve("gpt10m")[-1]
    assert (round(last.train, 3), round(last.val, 3)) == (1.084, 1.478)


@pytest.mark.parametrize("name", CURVES)
def test_tensorboard_events_equal_the_csv_file(name: str) -> None:
    (path,) = (REFERENCE_CURVES / name).glob("events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    rows = read_curve(name)
    for split in ("train", "val"):
        losses = [getattr(row, split) for row in rows]
        for tag, values in {
            "loss": losses,
            "perplexity": [math.exp(loss) for loss in losses],
            "bits_per_character": [loss / math.log(2) for loss in losses],
        }.items():
            scalars = events.Scalars(f"{tag}/{split}")
            assert [scalar.step for scalar in scalars] == [row.step for row in rows]
            assert [scalar.value for scalar in scalars] == pytest.approx(values, rel=1e-6)
    assert len(events.Tags()["scalars"]) == 6


def test_unknown_curve_is_empty() -> None:
    assert read_curve("gpt3") == []


def test_curve_is_read_from_the_csv_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "REFERENCE_CURVES", tmp_path)
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "curve.csv"
    path.write_text("step,train_loss,val_loss\n0,4.25,4.5\n10,1e-3,2\n", encoding="utf-8")
    assert read_curve("mine") == [Losses(0, 4.25, 4.5), Losses(10, 0.001, 2.0)]
    assert read_curve("bigram") == []


def test_reference_is_of_tiny_shakespeare_only() -> None:
    assert reference_curve("bigram", SHA256) == read_curve("bigram")
    assert reference_curve("bigram", "another checksum") == []
    assert reference_curve(None, SHA256) == []


RUN = [Losses(0, 4.2, 4.25), Losses(250, 3.0, 3.125), Losses(500, 2.0, 2.25)]


def test_evaluations_are_listed() -> None:
    assert loss_table(RUN[::2]).splitlines() == [
        "  step    train      val",
        "     0   4.2000   4.2500",
        "   500   2.0000   2.2500",
    ]


def test_common_steps_are_compared() -> None:
    curve = [Losses(0, 4.0, 4.0), Losses(500, 2.5, 2.5), Losses(1000, 1.0, 1.0)]
    assert comparison_table(RUN, curve).splitlines() == [
        "  step    train  reference      val  reference  difference",
        "     0   4.2000     4.0000   4.2500     4.0000     +0.2500",
        "   500   2.0000     2.5000   2.2500     2.5000     -0.2500",
    ]


@pytest.mark.parametrize("curve", [[], [Losses(1, 1.0, 1.0)]])
def test_no_table_without_common_steps(curve: list[Losses]) -> None:
    assert comparison_table(RUN, curve) == ""
    assert comparison_table([], RUN) == ""
