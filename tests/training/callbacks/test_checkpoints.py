"""Which checkpoints are saved, atomic writes, and resuming from damaged ones."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors import safe_open

from nanogpt.atomic import copy_atomically
from nanogpt.errors import UserError
from nanogpt.training.callbacks.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
)
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Outcome, Run
from tests.training.oracles import run_folder

ROOT = Path(__file__).parents[3]
FOLDER = Path("lightning_logs/version_0/checkpoints")


def step_of(path: Path) -> int:
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


def test_last_checkpoint_is_the_last_step_even_if_the_loss_rises(fit: Run) -> None:
    # the val split has other statistics than the train split
    Path("turn.txt").write_text("ab" * 1000 + "ba" + "aabb" * 250, encoding="utf-8")
    outcome = fit(
        *("--data.corpus=turn.txt", "--data.val_fraction=0.33", "--trainer.max_steps=60"),
        *("--trainer.val_check_interval=10", "--model.learning_rate=0.03"),
    )
    assert outcome.code == 0, outcome.err
    assert step_of(FOLDER / "last.ckpt") == 60
    assert step_of(FOLDER / "best.ckpt") < 60


class Counting(L.Callback):
    """A callback whose state changes between two checkpoints of a step."""

    def __init__(self) -> None:
        self.saved = 0

    def state_dict(self) -> dict[str, Any]:
        self.saved += 1
        return {"saved": self.saved}


@pytest.mark.parametrize(
    ("options", "copied"),
    [([], 2), ([f"--trainer.callbacks={__name__}.Counting"], 0)],
    ids=["same", "changed"],
)
def test_second_checkpoint_of_a_step_is_a_copy_unless_a_state_has_changed(
    fit: Run, monkeypatch: pytest.MonkeyPatch, options: list[str], copied: int
) -> None:
    copies: list[str] = []

    def copy(source: Path, path: Path) -> None:
        copies.append(path.name)
        copy_atomically(source, path)

    monkeypatch.setattr("nanogpt.training.callbacks.checkpoints.copy_atomically", copy)
    improving = ("--trainer.max_steps=4", "--model.learning_rate=0.01")
    assert fit(*improving, *options).code == 0
    assert copies == ["last.ckpt", "last.safetensors"][:copied]
    contents = [torch.load(FOLDER / f"{name}.ckpt", weights_only=True) for name in ("best", "last")]
    assert [content["global_step"] for content in contents] == [4, 4]
    states = [content["callbacks"] for content in contents]
    assert (states[0] == states[1]) == bool(copied)
    models = [(FOLDER / f"{name}.safetensors").read_bytes() for name in ("best", "last")]
    assert models[0] == models[1]


def test_last_checkpoint_has_the_current_weights_and_needs_no_copy(tmp_path: Path) -> None:
    writer, weight = AtomicCheckpointIO(), torch.zeros(2)
    content: dict[str, Any] = {"hyper_parameters": {"vocabulary": "ab"}, "callbacks": {}}
    for step, last in enumerate(("last", "last", "best"), 1):
        weight += 1
        content |= {"global_step": step, "state_dict": {"weight": weight.clone()}}
        for name in ("best", last):
            if step == 2 and name == "last":  # as by a user, between the two
                (tmp_path / "best.safetensors").unlink()
            writer.save_checkpoint(content, tmp_path / f"{name}.ckpt")
            saved = torch.load(tmp_path / f"{name}.ckpt", weights_only=True)
            assert saved["state_dict"]["weight"].tolist() == [step, step]
            with safe_open(tmp_path / f"{name}.safetensors", framework="pt") as file:
                assert file.get_tensor("weight").tolist() == [step, step]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ckpt_path=missing.ckpt"], "missing.ckpt"),
        (["--ckpt_path=text.txt"], "cannot be read as a nanogpt checkpoint"),
        (["--ckpt_path=best", "--model.n_embd=12"], "n_embd 8, not 12"),
        (["--ckpt_path=best", "--data.corpus=other.txt"], "vocabulary"),
    ],
)
def test_unsuitable_checkpoint_gives_a_one_line_error(
    fit: Run, options: list[str], message: str
) -> None:
    fit()
    Path("other.txt").write_text("xyz" * 1000, encoding="utf-8")
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    outcome = fit("--trainer.max_steps=8", *options)
    assert outcome.code == 2
    *notices, error = outcome.err.splitlines()
    assert message in error
    assert all(line.startswith("notice: ") for line in notices)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_full_disk_leaves_the_old_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.ckpt"
    first, second = (
        {
            "global_step": step,
            "state_dict": {"weight": torch.zeros(2)},
            "hyper_parameters": {"vocabulary": "ab"},
        }
        for step in (1, 2)
    )
    AtomicCheckpointIO().save_checkpoint(first, target)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device at .*last.ckpt"):
        AtomicCheckpointIO().save_checkpoint(second, target)
    assert torch.load(target, weights_only=True)["global_step"] == 1
    assert set(tmp_path.iterdir()) == {target, target.with_suffix(".safetensors")}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_full_disk_stops_a_run_which_resumes_when_space_is_free(
    fit: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, checkpoints = os.fsync, [0]

    def full(file: int) -> None:
        if Path(f"/proc/self/fd/{file}").readlink().name == "last.ckpt":
            checkpoints[0] += 1
            if checkpoints[0] == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    outcome = fit()
    assert outcome.code == 2
    assert outcome.err.startswith("error: No space left on device at ")
    size = (FOLDER / "last.ckpt").stat().st_size / 1e6
    assert f"last.ckpt, which takes {size:.1f} MB" in outcome.err
    assert (
        f"the run stopped at step 6; the last good checkpoint is {FOLDER / 'last.ckpt'}"
        in outcome.err
    )
    assert "python cli.py fit --ckpt_path last" in outcome.err
    assert outcome.err.count("\n") == 1
    assert step_of(FOLDER / "last.ckpt") == 4
    assert run("fit", "--ckpt_path=last").code == 0
    assert step_of(FOLDER / "last.ckpt") == 6


def test_disk_that_is_full_from_the_start_gives_a_one_line_error(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = fit()
    assert outcome.code == 2
    assert outcome.err.startswith("error: No space left on device at ")
    assert "config.yaml" in outcome.err
    assert outcome.err.count("\n") == 1


def test_only_partial_files_of_a_killed_run_are_removed(fit: Run, run: Run) -> None:
    fit("--trainer.max_steps=2")
    ours, theirs = FOLDER / ".partial-ab12_xyz", FOLDER / ".partial-of-mine"
    for folder in (ours, theirs):
        folder.mkdir()
        (folder / "last.ckpt").write_bytes(b"half")
    assert run("fit", "--ckpt_path=last", "--trainer.max_steps=4").code == 0
    assert not ours.exists()
    assert theirs.exists()


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_damaged_checkpoint_is_replaced_by_the_other_one(
    fit: Run, run: Run, content: bytes | None
) -> None:
    fit()
    damage(FOLDER / "last.ckpt", content)
    outcome = run("fit", "--ckpt_path=last", "--trainer.max_steps=8")
    assert outcome.code == 0, outcome.err
    assert "last.ckpt is damaged" in outcome.err.splitlines()[0]
    assert step_of(FOLDER / "last.ckpt") == 8
    damage(FOLDER / "last.ckpt", content)
    damage(FOLDER / "best.ckpt", content)
    check_refused(run("fit", "--ckpt_path=last"), "neither ")


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_damaged_model_is_replaced_by_the_other_one(
    fit: Run, run: Run, content: bytes | None
) -> None:
    fit()
    best, last = FOLDER / "best.safetensors", FOLDER / "last.safetensors"
    damage(best, content)
    for command in (["predict", "--max_new_tokens=1"], ["validate"]):
        outcome = run(*command)
        assert outcome.code == 0, outcome.err
        assert f"best.safetensors is damaged: using {last} instead" in outcome.err
    # a file given by name has no fallback
    check_refused(run("predict", f"--ckpt_path={best}"), "cannot be read as a nanogpt model")
    damage(last, content)
    for command in (["predict"], ["validate"]):
        check_refused(run(*command), "neither ")


def check_refused(outcome: Outcome, message: str) -> None:
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def damage(path: Path, content: bytes | None) -> None:
    """Replace the content of a file, or truncate it to half of its length."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)


@pytest.mark.skipif(sys.platform == "win32", reason="needs head")
def test_closed_pipe_ends_predict_without_an_error(fit: Run) -> None:
    fit()
    command = f"{sys.executable} {ROOT / 'cli.py'} predict --max_new_tokens 5000 | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert len(done.stdout) == 10
    assert done.stderr.count("\n") == 1  # the name of the checkpoint


class HasNumpyState(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"path": Path("x")}


def test_state_that_cannot_be_read_again_is_left_out_with_a_notice(fit: Run, run: Run) -> None:
    outcome = fit(f"--trainer.callbacks={__name__}.HasNumpyState")
    assert outcome.code == 0
    assert "the state of the callback HasNumpyState is not saved" in outcome.err
    assert run("predict", "--max_new_tokens=1").code == 0
    config = str(run_folder() / "config.yaml")  # it names a class that is not Lightning's
    assert "names the class" in run("fit", "--ckpt_path=last", "--trainer.max_steps=8").err
    more = (f"--config={config}", "--ckpt_path=last", "--trainer.max_steps=8")
    resumed = run("fit", *more)
    assert resumed.code == 0, resumed.err


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_checkpoint_of_another_run_is_not_overwritten(text: str) -> None:
    def fit() -> None:
        trainer = L.Trainer(
            max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
            callbacks=[BestCheckpoint(), LastCheckpoint()],
        )  # fmt: skip
        model = LanguageModel("bigram", block_size=8)
        trainer.fit(model, CharDataModule(text, block_size=8, batch_size=4))

    fit()
    before = Path("checkpoints/last.ckpt").read_bytes()
    with pytest.raises(UserError, match=r"best.ckpt is of another run: give the callback"):
        fit()
    assert Path("checkpoints/last.ckpt").read_bytes() == before
