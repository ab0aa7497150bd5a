"""Finding runs and checkpoints."""

import os
from pathlib import Path

import pytest

from nanogpt.errors import UserError
from nanogpt.runs import LOGS, MODEL, STATE, Run, find_checkpoint, find_model, newest_run, run_of


def make_run(name: str, *checkpoints: str) -> Path:
    """Create a run folder like training does, with the given checkpoints; return its path."""
    folder = LOGS / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    for checkpoint in checkpoints:
        for suffix in (MODEL, STATE):
            (folder / "checkpoints" / f"{checkpoint}{suffix}").touch()
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
    model = Run(folder).model(which)
    assert model == (found and found.with_suffix(MODEL))
    if expected:
        assert find_checkpoint(which) == found
        assert find_model(which) == model


def test_run_with_only_models_or_only_checkpoints_counts() -> None:
    for number, suffix in enumerate((MODEL, STATE)):
        folder = make_run(f"version_{number}")
        (folder / "checkpoints" / f"last{suffix}").touch()
        assert newest_run() == Run(folder)
    with pytest.raises(UserError, match=r"no \.safetensors file beside"):
        find_model()
    assert find_model(str(LOGS / "version_0")).name == "last.safetensors"


def test_path_may_be_a_run_folder_or_a_file() -> None:
    old, new = make_run("version_0", "best", "last"), make_run("version_1", "best")
    assert find_checkpoint() == new / "checkpoints" / "best.ckpt"
    assert find_model() == new / "checkpoints" / "best.safetensors"
    for folder in (str(old), f"{old}/"):
        assert find_checkpoint(folder) == old / "checkpoints" / "last.ckpt"
        assert find_model(folder) == old / "checkpoints" / "best.safetensors"
    last = old / "checkpoints" / "last.ckpt"
    assert find_checkpoint(str(last)) == last
    assert find_model(str(last.with_suffix(MODEL))) == last.with_suffix(MODEL)


def test_model_and_checkpoint_are_found_beside_each_other() -> None:
    last = make_run("version_0", "last") / "checkpoints" / "last.ckpt"
    assert find_model(str(last)) == last.with_suffix(MODEL)
    assert find_checkpoint(str(last.with_suffix(MODEL))) == last
    alone = make_run("version_1", "last") / "checkpoints" / "last.safetensors"
    alone.with_suffix(STATE).unlink()
    for path in (alone, alone.parent.parent):
        with pytest.raises(UserError, match=r"only a model: a run resumes from its .ckpt file"):
            find_checkpoint(str(path))
    last.with_suffix(MODEL).unlink()
    with pytest.raises(UserError, match=r"no \.safetensors file beside"):
        find_model(str(last))


NOT_FOUND = ["missing.ckpt", "missing.safetensors", ".", "", "lightning_logs", "a\0b", "n" * 300,
             "loop", "pipe", "/dev/zero"]  # fmt: skip


@pytest.mark.parametrize("path", NOT_FOUND, ids=ascii)
def test_error_for_what_is_no_file_lists_the_valid_values(path: str) -> None:
    make_run("version_0", "best")
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    with pytest.raises(UserError, match=r"--ckpt_path takes a .ckpt file"):
        find_checkpoint(path)
    with pytest.raises(UserError, match=r"--ckpt_path takes a .safetensors file"):
        find_model(path)


@pytest.mark.parametrize("which", ["best", "last"])
def test_error_without_runs_shows_how_to_train(which: str) -> None:
    for find in (find_checkpoint, find_model):
        with pytest.raises(UserError, match=r"fit --config .* or pass one to --ckpt_path"):
            find(which)


def test_run_of_a_checkpoint() -> None:
    folder = make_run("version_0", "best")
    assert run_of(folder / "checkpoints" / "best.ckpt") == Run(folder.resolve())
    assert Run(folder).config == folder / "config.yaml"
    assert run_of(Path("away.ckpt")) is None
    (folder / "config.yaml").unlink()
    assert run_of(folder / "checkpoints" / "best.ckpt") is None


def test_checkpoint_without_a_model_file_is_named_as_of_an_older_version() -> None:
    folder = make_run("version_0", "last")
    (folder / "checkpoints" / "last.safetensors").unlink()
    for path in ("best", str(folder), str(folder / "checkpoints" / "last.ckpt")):
        with pytest.raises(UserError, match="as those of an older version: resume the run once"):
            find_model(path)
