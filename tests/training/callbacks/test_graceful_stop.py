"""Ctrl-C and SIGTERM during a run."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.training.callbacks import LastCheckpoint
from nanogpt.training.callbacks.run_state import RunState
from tests.command_lines import CONFIGS, TINY, Run
from tests.training.oracles import run_folder

ROOT = Path(__file__).parents[3]
LAST = run_folder() / "checkpoints" / "last.ckpt"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_signal_stops_a_run_after_saving_the_current_step(
    text: str, number: signal.Signals, name: str
) -> None:
    config = ("--config", str(CONFIGS / "quickstart.yaml"), f"--data.corpus={text}")
    steps = ("--trainer.max_steps=1000000", "--trainer.val_check_interval=200")
    command = [sys.executable, str(ROOT / "cli.py"), "fit", *config, *TINY, *steps]
    # under nohup, the tests ignore a hangup, and so would the command
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGHUP, before)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 200:"):
                process.send_signal(number)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 128 + number
    step = torch.load(LAST, weights_only=True)["global_step"]
    assert step >= 200
    assert error == (
        f"stopped by {name} after step {step}: saved in {LAST}; resume with "
        f"`python {ROOT / 'cli.py'} fit --ckpt_path last`\n"
    )


def test_second_ctrl_c_stops_at_once(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice(self: RunState, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the run continued")

    monkeypatch.setattr(RunState, "on_validation_batch_end", twice)
    outcome = fit()
    assert outcome.code == 130
    assert "there is no checkpoint" in outcome.err
    assert "Traceback" not in outcome.err
    assert signal.getsignal(signal.SIGINT) == before


def test_signal_before_the_first_step_saves_nothing(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RunState.on_validation_batch_end

    def stop(self: RunState, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(self, *args)

    monkeypatch.setattr(RunState, "on_validation_batch_end", stop)
    outcome = fit()
    assert outcome.code == 143
    assert outcome.err == "stopped by SIGTERM after step 0: no checkpoint has been saved\n"
    assert not LAST.exists()


def test_signal_after_the_last_step_lets_the_run_finish(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LastCheckpoint.save

    def save(self: LastCheckpoint, trainer: Any) -> Path | None:
        if trainer.global_step == 6 and self.saved_step < 6:
            signal.raise_signal(signal.SIGINT)
        return original(self, trainer)

    monkeypatch.setattr(LastCheckpoint, "save", save)
    outcome = fit()
    assert outcome.code == 0
    assert "more text" in outcome.out


def test_ignored_ctrl_c_stays_ignored(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = RunState.on_train_batch_end

    def stop(self: RunState, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(self, *args)

    monkeypatch.setattr(RunState, "on_train_batch_end", stop)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fit().code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_ladder_with_one_line(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RunState.on_train_batch_end

    def stop(self: RunState, trainer: Any, *args: Any) -> None:
        if (
            trainer.lightning_module.hparams["architecture"] == "ablated_gpt"
            and trainer.global_step == 3
        ):
            signal.raise_signal(signal.SIGINT)
        original(self, trainer, *args)

    monkeypatch.setattr(RunState, "on_train_batch_end", stop)
    small = ("--trainer.max_steps=4", "--trainer.accelerator=cpu", "--data.batch_size=4")
    outcome = run("ladder", "--stages=1,2", f"--data.corpus={text}", "--card=false", *small)
    assert outcome.code == 130
    assert outcome.err.count("\n") == 1
    folder = Path("lightning_logs/ladder/version_0/02_average")
    assert f"`python cli.py fit --ckpt_path {folder}`" in outcome.err
    assert "01 bigram" in outcome.out
    assert (folder.parent / "ladder.md").is_file()
    done = run("fit", f"--ckpt_path={folder}")
    assert done.code == 0, done.err
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not Path("lightning_logs/version_0").exists()
