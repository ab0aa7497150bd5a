"""Ctrl-C and SIGTERM: what a run does about them."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.training.callbacks import Recorder
from nanogpt.training.checkpoints import Keeper
from tests.command_lines import CONFIGS, TINY, Run
from tests.training.oracles import run_folder

ROOT = Path(__file__).parents[2]
KEPT = run_folder() / "checkpoints" / "last.ckpt"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals come in another way there")


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")]
)
def test_a_signal_ends_a_run_once_its_step_is_saved(
    text: str, number: signal.Signals, name: str
) -> None:
    config = ("--config", str(CONFIGS / "quickstart.yaml"), f"--data.corpus={text}")
    steps = ("--trainer.max_steps=1000000", "--trainer.val_check_interval=200")
    command = [sys.executable, str(ROOT / "cli.py"), "fit", *config, *TINY, *steps]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 200:"):
                process.send_signal(number)
                break
        process.stdout.read()
        error = process.stderr.read()
    assert process.returncode == 128 + number
    step = torch.load(KEPT, weights_only=True)["global_step"]
    assert step >= 200
    assert error == (
        f"stopped by {name} after step {step}: saved in {KEPT}; go on with "
        "`python cli.py fit --ckpt_path last`\n"
    )


def test_a_second_ctrl_c_does_not_wait(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    def twice(self: Recorder, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(Recorder, "on_validation_batch_end", twice)
    outcome = fit()
    assert outcome.code == 130
    assert "no checkpoint is kept" in outcome.err
    assert "Traceback" not in outcome.err
    assert signal.getsignal(signal.SIGINT) == before


def test_before_the_first_step_there_is_nothing_to_keep(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Recorder.on_validation_batch_end

    def stop(self: Recorder, *args: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        real(self, *args)

    monkeypatch.setattr(Recorder, "on_validation_batch_end", stop)
    outcome = fit()
    assert outcome.code == 143
    assert outcome.err == "stopped by SIGTERM after step 0: nothing is kept yet\n"
    assert not KEPT.exists()


def test_a_run_that_is_all_but_done_is_finished(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Keeper.keep

    def keep(self: Keeper, trainer: Any, best: bool | None = None) -> Path | None:
        if trainer.global_step == 6 and self.saved < 6:
            signal.raise_signal(signal.SIGINT)
        return real(self, trainer, best)

    monkeypatch.setattr(Keeper, "keep", keep)
    outcome = fit()
    assert outcome.code == 0
    assert "more text" in outcome.out


def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Recorder.on_train_batch_end

    def stop(self: Recorder, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        real(self, *args)

    monkeypatch.setattr(Recorder, "on_train_batch_end", stop)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fit().code == 0
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_ladder_quietly(
    run: Run, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Recorder.on_train_batch_end

    def stop(self: Recorder, trainer: Any, *args: Any) -> None:
        if trainer.lightning_module.hparams["architecture"] == "rung" and trainer.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        real(self, trainer, *args)

    monkeypatch.setattr(Recorder, "on_train_batch_end", stop)
    small = ("--trainer.max_steps=4", "--trainer.accelerator=cpu", "--data.batch_size=4")
    outcome = run("ladder", "--rungs=1,2", f"--data.corpus={text}", "--card=false", *small)
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
