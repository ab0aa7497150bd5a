"""Which run and which checkpoint are meant."""

from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.runs import LOGS, Run, find_checkpoint, newest_run, run_of


def leave(name: str, *checkpoints: str) -> Path:
    """Leave a run as training does, with some checkpoints; return its folder."""
    folder = LOGS / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for checkpoint in checkpoints:
        (folder / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return folder


def test_the_newest_run_has_the_highest_number() -> None:
    for number in (9, 10, 2, 0):
        leave(f"version_{number}", "last")
    assert newest_run() == Run(LOGS / "version_10")


@pytest.mark.parametrize("name", ["version_x", "version_11x", "version_", "myrun_12", "reference"])
def test_other_folders_are_no_runs(name: str) -> None:
    leave(name, "best", "last")
    with pytest.raises(UserError, match="no run with a checkpoint"):
        newest_run()
    leave("version_1", "best")
    assert newest_run() == Run(LOGS / "version_1")


def test_a_run_without_a_checkpoint_is_passed_over() -> None:
    leave("version_3", "last")
    leave("version_4")
    leave("version_5", "epoch=1-step=5")
    (LOGS / "version_6").mkdir()
    (LOGS / "version_7").touch()
    (LOGS / "version_8" / "checkpoints" / "best.ckpt").mkdir(parents=True)  # a folder of that name
    assert newest_run() == Run(LOGS / "version_3")


def test_runs_may_lie_elsewhere(tmp_path: Path) -> None:
    leave("version_0", "best")
    LOGS.rename(tmp_path / "elsewhere")
    assert newest_run(Path("elsewhere")).folder == Path("elsewhere") / "version_0"


@pytest.mark.parametrize(
    ("kept", "which", "expected"),
    [
        (["best", "last"], "best", "best"),
        (["best", "last"], "last", "last"),
        (["last"], "best", "last"),
        (["best"], "last", "best"),
        ([], "best", None),
        ([], "last", None),
    ],
)
def test_best_and_last_stand_in_for_each_other(
    kept: list[str], which: str, expected: str | None
) -> None:
    folder = leave("version_0", *kept)
    found = Run(folder).checkpoint(which)
    assert found == (expected and folder / "checkpoints" / f"{expected}.ckpt")
    if expected:
        assert find_checkpoint(which) == found


def test_a_checkpoint_may_be_named_by_its_path_or_its_runs() -> None:
    old, new = leave("version_0", "best", "last"), leave("version_1", "best")
    assert find_checkpoint() == new / "checkpoints" / "best.ckpt"
    assert find_checkpoint(str(old)) == old / "checkpoints" / "best.ckpt"
    assert find_checkpoint(f"{old}/") == old / "checkpoints" / "best.ckpt"
    last = str(old / "checkpoints" / "last.ckpt")
    assert find_checkpoint(last) == Path(last)


@pytest.mark.parametrize("path", ["missing.ckpt", ".", "", "lightning_logs"])
def test_what_is_no_checkpoint_is_refused_with_the_way_out(path: str) -> None:
    leave("version_0", "best")
    with pytest.raises(UserError, match=r"--ckpt_path takes a .ckpt file"):
        find_checkpoint(path)


@pytest.mark.parametrize("which", ["best", "last"])
def test_without_a_run_the_way_to_one_is_shown(which: str) -> None:
    with pytest.raises(UserError, match=r"fit --config .* or give one with --ckpt_path"):
        find_checkpoint(which)


def test_the_run_of_a_checkpoint_is_where_it_lies() -> None:
    folder = leave("version_0", "best")
    assert run_of(folder / "checkpoints" / "best.ckpt") == Run(folder.resolve())
    assert Run(folder).config == folder / "config.yaml"
    assert run_of(Path("away.ckpt")) is None
    (folder / "config.yaml").unlink()
    assert run_of(folder / "checkpoints" / "best.ckpt") is None
