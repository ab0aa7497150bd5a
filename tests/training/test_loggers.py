"""Where loggers write, and that no curve is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt.training import loggers
from nanogpt.training.callbacks import non_finite_guard
from tests.command_lines import Run
from tests.training.oracles import run_folder

CSV = '{"class_path": "CSVLogger", "init_args": {"name": "exp", "version": "a"}}'
BOTH = '["TensorBoardLogger", {"class_path": "CSVLogger", "init_args": {"name": "exp"}}]'


def steps(path: Path) -> list[int]:
    """Return the steps in a ``metrics.csv`` that have a val loss."""
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    found = [dict(zip(header, row, strict=True)) for row in rows]
    return [int(row["step"]) for row in found if row["loss/val"]]


def test_new_run_does_not_delete_the_curves_of_another(fit: Run) -> None:
    options = f"--trainer.logger=[TensorBoardLogger,{CSV}]"
    assert fit(options).code == 0
    before = Path("exp/a/metrics.csv").read_bytes()
    again = fit(options)
    assert again.code == 2
    assert "exp/a has the curves of another run or logger" in again.err
    assert Path("exp/a/metrics.csv").read_bytes() == before
    assert not run_folder(1).exists()


def test_loggers_with_a_version_and_without_share_it(fit: Run, run: Run) -> None:
    first = '{"class_path": "TensorBoardLogger", "init_args": {"version": "foo"}}'
    assert fit(f"--trainer.logger=[{first},CSVLogger]").code == 0
    folder = Path("lightning_logs/foo")
    assert steps(folder / "metrics.csv") == [0, 4, 6]
    assert run("fit", f"--ckpt_path={folder}", "--trainer.max_steps=8").code == 0
    assert steps(folder / "metrics.csv") == [0, 4, 6, 8]
    assert [path.name for path in Path("lightning_logs").iterdir()] == ["foo"]


@pytest.mark.parametrize("cut", [1, 6, 30])
def test_metrics_that_a_kill_has_cut_off_are_left_out(fit: Run, run: Run, cut: int) -> None:
    fit("--trainer.logger=CSVLogger")
    path = run_folder() / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    resumed = run("fit", "--ckpt_path=last", "--trainer.max_steps=8")
    assert resumed.code == 0, resumed.err
    assert steps(path)[-1] == 8
    assert [file.name for file in run_folder().glob("*.csv")] == ["metrics.csv"]


def test_curves_are_kept_beside_until_they_are_written_again(
    fit: Run, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit("--trainer.logger=CSVLogger")
    before = (run_folder() / "metrics.csv").read_bytes()

    def kill(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("nanogpt.training.callbacks.run_record.continue_csv", kill)
    with pytest.raises(ZeroDivisionError):
        run("fit", "--ckpt_path=last", "--trainer.max_steps=8")
    assert (run_folder() / "metrics.before_resume.csv").read_bytes() == before


def test_runs_that_start_together_get_folders_of_their_own(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, original = iter([0]), loggers.next_version
    with loggers_lock(run_folder(0)):
        monkeypatch.setattr(
            loggers, "next_version", lambda root: next(other, None) or original(root)
        )
        outcome = fit()
    assert outcome.code == 0, outcome.err
    assert "in lightning_logs/version_1" in outcome.out


def loggers_lock(folder: Path) -> Any:
    from nanogpt.training.run_lock import lock_folder

    return lock_folder(folder, is_used=lambda: True)


def test_logger_that_is_new_on_resume_leaves_other_curves_alone(fit: Run, run: Run) -> None:
    other = '{"class_path": "CSVLogger", "init_args": {"save_dir": "other"}}'
    fit(f"--trainer.logger={other}", "--trainer.max_steps=12")
    path = Path("other/lightning_logs/version_0/metrics.csv")
    before = path.read_bytes()
    fit()
    options = ("--trainer.max_steps=8", f"--trainer.logger=[TensorBoardLogger,{other}]")
    resumed = run("fit", "--ckpt_path=last", *options)
    assert resumed.code == 0, resumed.err
    assert path.read_bytes() == before
    assert steps(Path("other/lightning_logs/version_1/metrics.csv")) == [8]


def test_prefix_of_a_logger_is_added_once(fit: Run, run: Run) -> None:
    fit('--trainer.logger={"class_path": "CSVLogger", "init_args": {"prefix": "pre"}}')
    assert run("fit", "--ckpt_path=last", "--trainer.max_steps=8").code == 0
    header = (run_folder() / "metrics.csv").read_text().splitlines()[0]
    assert "pre-loss/val" in header
    assert "pre-pre" not in header


def test_one_folder_for_two_loggers_of_a_kind_is_refused(fit: Run) -> None:
    outcome = fit("--trainer.logger=[CSVLogger,CSVLogger]")
    assert outcome.code == 2
    assert "another run or logger" in outcome.err
    assert not run_folder().exists()


def test_changes_of_classes_are_named_on_resume(fit: Run, run: Run) -> None:
    fit("--callbacks.samples=null")
    options = (
        "--trainer.max_steps=8",
        "--callbacks.samples=SampleWriter",
        "--trainer.logger=false",
    )
    notices = run("fit", "--ckpt_path=last", *options).err.splitlines()
    assert "notice: callbacks.samples changed from None to 'SampleWriter'" in notices
    assert "notice: trainer.logger changed from None to False" in notices
    again = run("fit", "--ckpt_path=last", "--trainer.max_steps=9", "--callbacks.samples.length=7")
    assert "notice: callbacks.samples.length changed from 200 to 7" in again.err


def test_losses_are_read_only_when_they_are_logged(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading one makes the CPU wait for a GPU."""
    calls, original = [0], torch.Tensor.item

    def item(self: torch.Tensor) -> Any:
        calls[0] += 1
        return original(self)

    monkeypatch.setattr(non_finite_guard, "is_on_cpu", lambda _: False)
    counts = []
    for n_steps in (40, 120):
        calls[0] = 0
        with monkeypatch.context() as patched:
            patched.setattr(torch.Tensor, "item", item)
            options = ("--trainer.log_every_n_steps=20", "--trainer.val_check_interval=1000")
            assert fit(f"--trainer.max_steps={n_steps}", *options).code == 0
        counts.append(calls[0])
    assert counts[1] - counts[0] < 80  # of 80 further steps, four are logged
