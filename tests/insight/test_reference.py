"""The reference's curves: what its logs say, in both forms, and held against a run."""

import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nanogpt.insight.reference import FOLDER, Losses, comparison, curve_names, read_curve

# Evaluations, the interval between them, and the first and the last one.
CURVES = {
    "bigram": (17, 300, Losses(0, 4.7305, 4.7241), 4800),
    "gpt10m": (10, 500, Losses(0, 4.2846, 4.2820), 4500),
}


def test_both_curves_are_there() -> None:
    assert curve_names() == sorted(CURVES)


@pytest.mark.parametrize(("name", "curve"), CURVES.items(), ids=CURVES)
def test_a_curve_is_the_references(name: str, curve: tuple[int, int, Losses, int]) -> None:
    n, interval, first, last_step = curve
    rows = read_curve(name)
    assert [row.step for row in rows] == [interval * i for i in range(n)]
    assert (rows[0], rows[-1].step) == (first, last_step)
    assert all(row.train > 0 and row.val > 0 for row in rows)


def test_the_headline_run_ends_as_it_is_quoted() -> None:
    last = read_curve("gpt10m")[-1]
    assert (round(last.train, 3), round(last.val, 3)) == (1.084, 1.478)


@pytest.mark.parametrize("name", CURVES)
def test_tensorboard_shows_the_same_numbers(name: str) -> None:
    (path,) = (FOLDER / name).glob("events.out.tfevents.*")
    events = EventAccumulator(str(path)).Reload()
    rows = read_curve(name)
    for split in ("train", "val"):
        losses = [getattr(row, split) for row in rows]
        for tag, values in {
            "loss": losses,
            "perplexity": [math.exp(loss) for loss in losses],
            "bits_per_character": [loss / math.log(2) for loss in losses],
        }.items():
            found = events.Scalars(f"{tag}/{split}")
            assert [event.step for event in found] == [row.step for row in rows]
            assert [event.value for event in found] == pytest.approx(values, rel=1e-6)
    assert len(events.Tags()["scalars"]) == 6


def test_a_curve_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert read_curve("gpt3") == []
    assert read_curve("bigram", tmp_path) == []
    assert curve_names(tmp_path) == []


def test_a_curve_is_read_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "curve.csv"
    path.write_text("step,train_loss,val_loss\n0,4.25,4.5\n10,1e-3,2\n", encoding="utf-8")
    assert curve_names(tmp_path) == ["mine"]
    assert read_curve("mine", tmp_path) == [Losses(0, 4.25, 4.5), Losses(10, 0.001, 2.0)]


RUN = [Losses(0, 4.2, 4.25), Losses(250, 3.0, 3.125), Losses(500, 2.0, 2.25)]


def test_the_steps_that_both_have_are_compared() -> None:
    theirs = [Losses(0, 4.0, 4.0), Losses(500, 2.5, 2.5), Losses(1000, 1.0, 1.0)]
    assert comparison(RUN, theirs).splitlines() == [
        "  step    train  reference      val  reference  difference",
        "     0   4.2000     4.0000   4.2500     4.0000     +0.2500",
        "   500   2.0000     2.5000   2.2500     2.5000     -0.2500",
    ]


@pytest.mark.parametrize("theirs", [[], [Losses(1, 1.0, 1.0)]])
def test_no_common_step_gives_no_table(theirs: list[Losses]) -> None:
    assert comparison(RUN, theirs) == ""
    assert comparison([], RUN) == ""
