"""Finding runs and checkpoints."""

from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.runs import LOGS, Run, find_checkpoint, newest_run, run_of


def make_run(name: str, *checkpoints: str) -> Path:
    """Create a run folder like training does, with the given checkpoints; return its path."""
    folder = LOGS / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for checkpoint in checkpoints:
        (folder / "checkpoints" / f"{checkpoint}.ckpt").touch()
    return folder


def test_newest_run_has_the_highest_number() -> None:
    for number in (9, 10, 2, 0):
        make_run(f"version_{number}", "last")
    assert newest_run() == Run(LOGS / "version_10")


@pytest.mark.parametrize("name", ["version_x", "version_11x", "version_", "myrun_12", "reference"])
def test_other_folders_are_ignored(name: str) -> None:
    make_run(name, "best", "last")
    with pytest.raises(UserError, match="no run with a checkpoint"):
        newest_run()
    make_run("version_1", "best")
    assert newest_run() == Run(LOGS / "version_1")


def test_runs_without_a_checkpoint_are_skipped() -> None:
    make_run("version_3", "last")
    make_run("version_4")
    make_run("version_5", "epoch=1-step=5")
    (LOGS / "version_6").mkdir()
    (LOGS / "version_7").touch()
    (LOGS / "version_8" / "checkpoints" / "best.ckpt").mkdir(parents=True)  # a folder of that name
    assert newest_run() == Run(LOGS / "version_3")


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
def test_missing_best_or_last_is_replaced_by_the_other(
    kept: list[str], which: str, expected: str | None
) -> None:
    folder = make_run("version_0", *kept)
    found = Run(folder).checkpoint(which)
    assert found == (expected and folder / "checkpoints" / f"{expected}.ckpt")
    if expected:
        assert find_checkpoint(which) == found


def test_checkpoint_path_may_be_a_run_folder_or_a_file() -> None:
    old, new = make_run("version_0", "best", "last"), make_run("version_1", "best")
    assert find_checkpoint() == new / "checkpoints" / "best.ckpt"
    assert find_checkpoint(str(old)) == old / "checkpoints" / "best.ckpt"
    assert find_checkpoint(f"{old}/") == old / "checkpoints" / "best.ckpt"
    last = str(old / "checkpoints" / "last.ckpt")
    assert find_checkpoint(last) == Path(last)


@pytest.mark.parametrize("path", ["missing.ckpt", ".", "", "lightning_logs"])
def test_missing_checkpoint_error_lists_the_valid_values(path: str) -> None:
    make_run("version_0", "best")
    with pytest.raises(UserError, match=r"--ckpt_path takes a .ckpt file"):
        find_checkpoint(path)


@pytest.mark.parametrize("which", ["best", "last"])
def test_error_without_runs_shows_how_to_train(which: str) -> None:
    with pytest.raises(UserError, match=r"fit --config .* or pass one to --ckpt_path"):
        find_checkpoint(which)


def test_run_of_a_checkpoint() -> None:
    folder = make_run("version_0", "best")
    assert run_of(folder / "checkpoints" / "best.ckpt") == Run(folder.resolve())
    assert Run(folder).config == folder / "config.yaml"
    assert run_of(Path("away.ckpt")) is None
    (folder / "config.yaml").unlink()
    assert run_of(folder / "checkpoints" / "best.ckpt") is None
