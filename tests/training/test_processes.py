"""Several processes train one model: same losses, one output, one run, and they stop together."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nanogpt.text.pastiche import pastiche
from tests.command_lines import CONFIGS, TINY, Outcome, Run, is_one_line

CLI = Path(__file__).parents[2] / "cli.py"
PYTHON = [sys.executable, str(CLI)]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
TORCHRUN += ["--nproc_per_node=2", str(CLI)]
FIT = ["fit", f"--config={CONFIGS / 'quickstart.yaml'}", *TINY, "--data.corpus=text.txt"]
SHORT = ["--trainer.max_steps=6", "--trainer.val_check_interval=4"]
FAST = ["--model.schedule=constant", "--model.warmup_steps=0"]  # each step changes the weights
ENDLESS = ["--trainer.max_steps=1000000", "--trainer.val_check_interval=1000000"]
LOSSES = re.compile(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", re.MULTILINE)
SECONDS = 120  # only a run that hangs takes that long

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform == "win32",
    reason="needs gloo and POSIX signals",
)


@dataclass
class Processes:
    """A command line in its own process group."""

    process: "subprocess.Popen[str]"

    def signal(self, number: signal.Signals, group: bool) -> None:
        """Send a signal to the whole group, as a terminal does, or to the main process only."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self) -> Outcome:
        """Wait until no process is left that could write: that the streams are at their end."""
        out, err = self.process.communicate(timeout=SECONDS)
        return Outcome(self.process.returncode, out, err)


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Processes]]:
    """Kill the processes of a failed test."""
    (tmp_path / "text.txt").write_text(pastiche()[:5000], encoding="utf-8")
    processes: list[Processes] = []
    yield processes
    for each in processes:
        if each.process.returncode is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.communicate()


def start(started: list[Processes], *command: str) -> Processes:
    """Start a command line whose output is not buffered."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
    )
    started.append(Processes(process))
    return started[-1]


def losses(out: str) -> list[tuple[float, ...]]:
    """Return step, train and val loss of each evaluation that is printed."""
    return [tuple(map(float, line)) for line in LOSSES.findall(out)]


def weights(version: str) -> torch.Tensor:
    """Return the weights after the last step of a run in one vector."""
    content = torch.load(f"lightning_logs/{version}/checkpoints/last.ckpt", weights_only=True)
    return torch.cat([weight.flatten() for weight in content["state_dict"].values()])


def check_output(outcome: Outcome, evaluations: int) -> None:
    """Check that a run succeeded, and printed each line once."""
    assert outcome.code == 0, outcome.err
    notices = outcome.err.splitlines()  # such as of another number of devices
    assert len(set(notices)) == len(notices)
    assert all(line.startswith("notice: ") for line in notices), outcome.err
    assert len(losses(outcome.out)) == evaluations
    for line in ("corpus text.txt", "M parameters", "training on cpu", "a sample of"):
        assert outcome.out.count(line) == 1, line


def test_two_processes_train_like_one(started: list[Processes], run: Run) -> None:
    """The batch is divided, so losses and weights agree, also where the number changes."""
    options = [*FIT, *FAST, "--trainer.val_check_interval=4"]
    first = [*PYTHON, *options, "--trainer.max_steps=4", "--card=true", "--trainer.devices=2"]
    two = start(started, *first).wait()
    check_output(two, evaluations=2)
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["version_0"]
    assert len(list(Path().rglob("config.yaml"))) == len(list(Path().rglob("card.md"))) == 1

    resume = ["fit", "--ckpt_path=lightning_logs/version_0", "--card=false"]
    one = run(*resume, "--trainer.max_steps=8", "--trainer.devices=1")
    assert (one.code, len(losses(one.out))) == (0, 1), one
    last = start(started, *PYTHON, *resume, "--trainer.max_steps=12", "--trainer.devices=2").wait()
    check_output(last, evaluations=1)

    whole = run(*options, "--trainer.max_steps=12")
    parts = losses(two.out) + losses(one.out) + losses(last.out)
    for ours, theirs in zip(parts, losses(whole.out), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    torch.testing.assert_close(weights("version_0"), weights("version_1"), atol=1e-4, rtol=1e-3)


def test_torchrun_and_dropout(started: list[Processes], run: Run) -> None:
    """Torchrun sets the number of processes, and each of them has its own dropout masks.

    The train split is a single window. If masks were alike, two processes with a window each would
    train like one process with one window.
    """
    Path("text.txt").write_text("abcdefghi" * 2, encoding="utf-8")
    options = [*FIT, *FAST, *SHORT, "--data.val_fraction=0.5", "--model.dropout=0.5"]
    two = start(started, *TORCHRUN, *options, "--data.batch_size=2").wait()
    check_output(two, evaluations=3)
    config = Path("lightning_logs/version_0/config.yaml").read_text(encoding="utf-8")
    assert "devices: 1" in config  # torchrun decides
    one = run(*options, "--data.batch_size=1")
    assert one.code == 0, one.err
    assert not torch.allclose(weights("version_0"), weights("version_1"), atol=1e-3)


@pytest.mark.parametrize(
    ("strategy", "number", "group"),
    [
        ("ddp", signal.SIGINT, True),  # Ctrl-C in a terminal
        ("ddp", signal.SIGTERM, False),  # kill
        ("ddp", signal.SIGTERM, True),  # timeout, systemd
        ("ddp_spawn", signal.SIGINT, True),
    ],
)
def test_signals_save_the_step(
    started: list[Processes], strategy: str, number: signal.Signals, group: bool
) -> None:
    """All processes stop after the same step, which is saved; one line says so."""
    options = ["--trainer.devices=2", f"--trainer.strategy={strategy}"]
    options += ["--callbacks.last_checkpoint.minutes=0"]
    processes = start(started, *PYTHON, *FIT, *ENDLESS, *options)
    stream = processes.process.stdout
    assert stream
    printed = ""
    while "step 0:" not in printed:
        line = stream.readline()
        assert line, processes.wait()
        printed += line
    while not Path("lightning_logs/version_0/checkpoints/last.ckpt").exists():  # some steps
        time.sleep(0.1)
    processes.signal(number, group)
    outcome = processes.wait()
    assert outcome.code == 128 + number, outcome
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    report = re.fullmatch(rf"stopped by {name} after step (\d+): saved in (\S+);.*\n", outcome.err)
    assert report, outcome.err
    assert torch.load(report[2], weights_only=True)["global_step"] == int(report[1]) > 0
    assert not losses(outcome.out)  # the one of step 0 was read above


def test_spawn_and_its_errors(started: list[Processes]) -> None:
    """Processes that Lightning spawns print, save and fail like the others."""
    options = [*FIT, *SHORT, "--trainer.devices=2", "--trainer.strategy=ddp_spawn"]
    check_output(start(started, *PYTHON, *options).wait(), evaluations=3)
    diverged = start(started, *PYTHON, *options, "--model.learning_rate=1e30").wait()
    assert diverged.code == 2
    assert is_one_line(diverged.err), diverged.err


def test_an_error_in_training_ends_all_processes(started: list[Processes]) -> None:
    """All processes end, and the main one prints the error."""
    options = ["--trainer.devices=2", "--model.learning_rate=1e30"]
    diverged = start(started, *PYTHON, *FIT, *SHORT, *options).wait()
    assert diverged.code == 2, diverged.err
    assert is_one_line(diverged.err), diverged.err


def test_devices_must_match_torchrun(run: Run, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that contradicts torchrun's is refused before training."""
    variables = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**variables, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    outcome = run(*FIT, *SHORT, "--trainer.devices=3")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "torchrun" in outcome.err


@pytest.mark.parametrize(
    "options", [["--trainer.strategy=fsdp"], ["--data.batch_size=3"]], ids=["fsdp", "batch size"]
)
def test_mistakes_are_found_before_processes_start(
    run: Run, text: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FSDP needs a GPU, and the batch must be divisible by the number of processes."""

    def launch(*args: object, **kwargs: object) -> None:
        raise AssertionError("processes were started")

    launcher = "lightning.pytorch.strategies.launchers.subprocess_script._SubprocessScriptLauncher"
    monkeypatch.setattr(f"{launcher}.launch", launch)
    outcome = run(*FIT, *SHORT, "--trainer.devices=2", *options)
    assert outcome.code == 2
    assert is_one_line(outcome.err)
