"""Which checkpoints are kept, that none is lost, and that a run goes on from one."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanogpt.training.checkpoints import AtomicCheckpointIO
from tests.commands import CONFIGS, TINY, Run

ROOT = Path(__file__).parents[2]
KEPT = Path("lightning_logs/version_0/checkpoints")


def step_of(path: Path) -> int:
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


def test_last_is_the_last_also_when_the_loss_rises(fit: Run) -> None:
    # trained on one half of the characters, so that what it learns is wrong of the other half
    Path("turn.txt").write_text("ab" * 1000 + "ba" + "aabb" * 250, encoding="utf-8")
    outcome = fit(
        *("--data.corpus=turn.txt", "--data.val_fraction=0.33", "--trainer.max_steps=60"),
        *("--trainer.val_check_interval=10", "--model.learning_rate=0.03"),
    )
    assert outcome.code == 0, outcome.err
    assert step_of(KEPT / "last.ckpt") == 60
    assert step_of(KEPT / "best.ckpt") < 60


def test_a_run_goes_on_to_the_weights_of_one_never_interrupted(fit: Run) -> None:
    steady = "--model.schedule=constant"
    fit(steady, "--trainer.max_steps=8")
    fit(steady, "--trainer.max_steps=4")
    assert fit(steady, "--trainer.max_steps=8", "--ckpt_path=last").code == 0
    whole, resumed = (
        torch.load(f"lightning_logs/version_{run}/checkpoints/last.ckpt", weights_only=True)
        for run in (0, 2)
    )
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--ckpt_path=missing.ckpt"], "missing.ckpt"),
        (["--ckpt_path=text.txt"], "not a checkpoint"),
        (["--ckpt_path=best", "--model.n_embd=12"], "n_embd 8, not 12"),
        (["--ckpt_path=best", "--data.corpus=other.txt"], "vocabulary"),
    ],
)
def test_what_a_run_cannot_go_on_from_gets_one_line(
    fit: Run, options: list[str], says: str
) -> None:
    fit()
    Path("other.txt").write_text("xyz" * 1000, encoding="utf-8")
    outcome = fit("--trainer.max_steps=8", *options)
    assert outcome.code == 2
    assert says in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_full_disk_leaves_the_old_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, target)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*last.ckpt") as caught:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, target)
    assert caught.value.filename == str(target)
    assert torch.load(target, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_ends_a_run_in_one_line(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = fit()
    assert outcome.code == 2
    assert outcome.err.startswith("error: No space left on device at ")
    assert "best.ckpt" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_ends_a_run_quietly(text: str) -> None:
    config = ("--config", str(CONFIGS / "quickstart.yaml"), f"--data.corpus={text}")
    steps = ("--trainer.max_steps=1000000", "--trainer.val_check_interval=5")
    command = [sys.executable, str(ROOT / "cli.py"), "fit", *config, *TINY, *steps]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 10:"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in error
    assert "last.ckpt" in error
    assert step_of(KEPT / "last.ckpt") >= 5


@pytest.mark.skipif(sys.platform == "win32", reason="there is no head there")
def test_a_closed_pipe_ends_predict_quietly(fit: Run) -> None:
    fit()
    command = f"{sys.executable} {ROOT / 'cli.py'} predict --max_new_tokens 5000 | head -c 10"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert len(done.stdout) == 10
    assert done.stderr.count("\n") == 1  # which checkpoint it samples from
