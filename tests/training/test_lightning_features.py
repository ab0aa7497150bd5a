"""Lightning's callbacks, loggers and Trainer flags: each works, or is refused in one line."""

import csv
import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from tensorboard.util.tensor_util import make_ndarray

from nanogpt.text.pastiche import pastiche
from tests.command_lines import Outcome, Run, is_one_line
from tests.training.lightning_features import (
    CALLBACKS,
    FLAGS,
    FOLDERS,
    HERE,
    LOGGERS,
    RECORDED,
    UNSCHEDULED,
    Row,
    flag,
    parts,
)
from tests.training.oracles import printed_losses

# warnings do not raise, but are notices on stderr, as they are for users
pytestmark = pytest.mark.filterwarnings("default", "ignore::DeprecationWarning")

RUN_LINE = re.compile(r"^run +(\S+)$", re.MULTILINE)
ENDED = re.compile(r"^training ended at step .*$", re.MULTILINE)


def cases(table: dict[str, list[Row]]) -> list[Any]:
    return [
        pytest.param(row, id=f"{name}-{i}")
        for name, rows in table.items()
        for i, row in enumerate(rows)
    ]


def test_every_callback_of_lightning_has_a_row() -> None:
    assert CALLBACKS.keys() == set(callbacks.__all__)


def test_every_flag_of_the_trainer_has_a_row() -> None:
    assert FLAGS.keys() == inspect.signature(L.Trainer.__init__).parameters.keys() - {"self"}


# readers


def visible(text: str) -> str:
    """Return what a terminal shows: a progress bar overwrites itself."""
    return re.sub(r"[^\n]*\r|\x1b\[A", "", text)


def run_folder_of(outcome: Outcome) -> Path:
    """Return the folder that the closing lines name."""
    match = RUN_LINE.search(outcome.out)
    assert match, f"no run line: {outcome.out}"
    return Path(match[1])


def steps_of_last(folder: Path) -> int:
    path = folder / "checkpoints" / "last.ckpt"
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return tag -> (step, value) in the order of writing, without what a resume has discarded.

    TensorBoard's own reader sorts the files by name, where the tenth of a process is before the
    second, and hides repetitions.
    """
    paths = sorted(
        folder.glob("events.out.tfevents.*"),
        key=lambda path: [int(part) for part in path.name.split(".") if part.isdigit()],
    )
    found: dict[str, list[tuple[int, float]]] = {}
    for event in (event for path in paths for event in EventFileLoader(str(path)).Load()):
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            found = {tag: [e for e in old if e[0] < event.step] for tag, old in found.items()}
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "scalars" or value.tag in found:
                scalar = make_ndarray(value.tensor).item()
                found.setdefault(value.tag, []).append((event.step, scalar))
    return found


def recorded_steps(tag: str, folder: Path) -> dict[str, list[int]]:
    """Return the steps at which each kind of logger has recorded a tag, with repetitions."""
    found: dict[str, list[int]] = {}
    if any(folder.glob("events.out.tfevents.*")):
        found["TensorBoardLogger"] = [step for step, _ in tensorboard_scalars(folder).get(tag, [])]
    if (path := folder / "metrics.csv").is_file():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        found["CSVLogger"] = [int(row["step"]) for row in rows if row.get(tag)]
    if (path := Path("own.jsonl")).is_file():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found["OwnLogger"] = [line["step"] for line in lines if tag in line]
    return found


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()} - {"text.txt"}


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Restore the process-wide settings that some flags change."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]


def resume(run: Run, folder: Path | str, *options: str) -> Outcome:
    """Resume a run with its own config, for 8 steps unless the options say otherwise.

    A config that names classes of the user has to be given.
    """
    command = ("fit", f"--ckpt_path={folder}", "--trainer.max_steps=8", *options)
    outcome = run(*command)
    if "if you trust it" not in outcome.err:
        return outcome
    return run("fit", f"--config={folder}/config.yaml", *command[1:])


def check(fit: Run, row: Row, tmp_path: Path) -> Path | None:
    """Run ``fit`` with the options of a row, and return the run folder if it has checkpoints."""
    outcome = fit(*row.options)
    if row.refused is not None:
        assert outcome.code == 2, outcome
        assert is_one_line(outcome.err), outcome.err
        assert re.search(row.refused, outcome.err), outcome.err
        assert written(tmp_path) == set(), outcome.err
        return None
    assert outcome.code == 0, outcome.err
    out = visible(outcome.out)
    assert tuple(printed_losses(out)) == row.evaluations
    if row.err is not None:
        assert re.fullmatch(row.err, outcome.err), outcome.err
    if row.report:
        assert re.search(row.report, outcome.out + outcome.err), outcome
    ended = ENDED.findall(out)
    assert len(ended) == (row.ended is not None), outcome.out
    if row.ended:
        assert re.match(rf"training ended at step {row.ended}\b", ended[0])
    if not row.checkpoints:
        return None
    folder = run_folder_of(outcome)
    assert (folder / "config.yaml").is_file()
    assert set(row.checkpoints) <= {path.name for path in folder.glob("checkpoints/*")}
    assert steps_of_last(folder) == (row.evaluations[-1] if row.evaluations else 6)
    return folder


# the tables


WORKING = {
    name: [row for row in rows[:1] if row.refused is None] for name, rows in CALLBACKS.items()
}
OTHERS = {
    name: [row for row in rows if row not in WORKING[name]] for name, rows in CALLBACKS.items()
}


@pytest.mark.parametrize("row", cases(OTHERS))
def test_callback_works_or_is_refused(fit: Run, tmp_path: Path, row: Row) -> None:
    check(fit, row, tmp_path)


@pytest.mark.parametrize("row", cases(WORKING))
def test_callback_works_also_on_resume(fit: Run, run: Run, tmp_path: Path, row: Row) -> None:
    folder = check(fit, row, tmp_path)
    assert folder is not None
    outcome = resume(run, folder)
    assert outcome.code == 0, outcome.err
    assert run_folder_of(outcome) == folder
    assert list(printed_losses(visible(outcome.out)))[-1] == 8
    assert steps_of_last(folder) == 8
    assert recorded_steps("loss/val", folder) == {"TensorBoardLogger": [*row.evaluations, 8]}
    sample = run("predict", f"--ckpt_path={folder}", "--max_new_tokens=5")
    assert (sample.code, len(sample.out)) == (0, 6), sample.err


@pytest.mark.parametrize("row", cases(FLAGS))
def test_flag_works_or_is_refused(fit: Run, tmp_path: Path, row: Row) -> None:
    check(fit, row, tmp_path)


def test_batch_size_must_be_divisible_by_devices(fit: Run, tmp_path: Path) -> None:
    row = flag("devices=2", refused="multiple of 2")
    check(fit, Row((*row.options, "--data.batch_size=3"), refused=row.refused), tmp_path)


EXACT = {
    "WeightAveraging": {},
    "EMAWeightAveraging": {"decay": 0.5},
    "SpikeDetection": {},
    "EarlyStopping": {"monitor": "loss/val"},
    "ModelCheckpoint": {"every_n_train_steps": 2, "save_last": True},
}


@pytest.mark.parametrize("name", EXACT)
def test_resumed_run_equals_an_uninterrupted_one(fit: Run, run: Run, name: str) -> None:
    options = (parts("callbacks", (name, EXACT[name])), *UNSCHEDULED)
    whole = fit(*options, "--trainer.max_steps=8")
    folder = run_folder_of(fit(*options, "--trainer.max_steps=4"))
    resumed = resume(run, folder)
    assert printed_losses(resumed.out) == {8: printed_losses(whole.out)[8]}, resumed.err


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_averaged_weights_are_evaluated_and_saved(fit: Run, run: Run, name: str) -> None:
    faster = ("--model.learning_rate=1e-2", *UNSCHEDULED)
    plain, averaged = fit(*faster), fit(parts("callbacks", (name, EXACT[name])), *faster)
    (train, val), folder = printed_losses(averaged.out)[6], run_folder_of(averaged)
    assert (train, val) != printed_losses(plain.out)[6]
    validated = run("validate", f"--ckpt_path={folder}")  # best.ckpt, of step 6
    assert train in validated.out, validated
    assert val in validated.out


# loggers


def options_of(logger: str) -> tuple[str, ...]:
    save_dir = logger in ("tensorboard", "csv")
    return (LOGGERS[logger], *(["--trainer.logger.save_dir=."] if save_dir else []))


@pytest.mark.parametrize("logger", LOGGERS)
def test_any_logger_has_one_run_folder_and_one_curve(fit: Run, run: Run, logger: str) -> None:
    outcome = fit(*options_of(logger))
    assert outcome.code == 0, outcome.err
    folder = run_folder_of(outcome)
    assert folder == Path(FOLDERS.get(logger, "lightning_logs/version_0"))
    assert (folder / "config.yaml").is_file()
    assert {path.name for path in folder.glob("checkpoints/*")} >= {"best.ckpt", "last.ckpt"}
    expected = {kind: [0, 4, 6] for kind in RECORDED[logger]}
    assert recorded_steps("loss/val", folder) == expected
    curves = re.findall(r"^curves +(.+)$", outcome.out, re.MULTILINE)
    if "TensorBoardLogger" in expected:
        assert curves == [f"tensorboard --logdir {folder.parent}"]
    else:
        assert curves == ([str(folder / "metrics.csv")] if "CSVLogger" in expected else [])

    resumed = resume(run, folder)
    assert resumed.code == 0, resumed.err
    assert "deleted" not in resumed.err  # a warning of the CSVLogger
    assert run_folder_of(resumed) == folder
    assert [path.parent for path in Path().rglob("config.yaml")] == [folder]
    for tag, steps in {"loss/val": [0, 4, 6, 8], "loss/batch": [2, 4, 6, 8]}.items():
        assert recorded_steps(tag, folder) == dict.fromkeys(RECORDED[logger], steps), tag

    sample = run("predict", f"--ckpt_path={folder}", "--max_new_tokens=5")
    assert (sample.code, len(sample.out)) == (0, 6), sample.err


@pytest.mark.parametrize("logger", ["default", "csv", "tensorboard", "tensorboard_csv"])
def test_resume_from_an_earlier_checkpoint_drops_the_later_curve(
    fit: Run, run: Run, logger: str
) -> None:
    folder = run_folder_of(fit(*options_of(logger), "--trainer.max_steps=4"))
    kept = (folder / "checkpoints" / "last.ckpt").read_bytes()
    assert resume(run, folder).code == 0
    (folder / "checkpoints" / "last.ckpt").write_bytes(kept)
    assert resume(run, folder).code == 0
    for steps in recorded_steps("loss/val", folder).values():
        assert steps == [0, 4, 8]
    for steps in recorded_steps("loss/batch", folder).values():
        assert steps == [2, 4, 6, 8]


def test_metrics_have_the_same_tags_and_steps_in_every_logger(fit: Run) -> None:
    folder = run_folder_of(fit(*options_of("tensorboard_csv")))
    tags = tensorboard_scalars(folder)
    for name in ("loss", "perplexity", "bits_per_character"):
        assert {f"{name}/train", f"{name}/val"} <= tags.keys()
    assert {"loss/batch", "loss/best_val", "learning_rate", "characters_per_second"} <= tags.keys()
    assert any(tag.startswith("ngrams/") for tag in tags)
    for tag in tags.keys() - {"hp_metric"}:  # a placeholder of TensorBoardLogger
        steps = recorded_steps(tag, folder)
        assert steps["TensorBoardLogger"] == steps["CSVLogger"] != [], tag
    assert "epoch" not in tags  # training is counted in steps


def test_logger_of_a_missing_package_is_refused(fit: Run, tmp_path: Path) -> None:
    if find_spec("wandb"):
        pytest.skip("wandb is installed")
    check(fit, flag("logger=WandbLogger", refused="wandb"), tmp_path)


# runs that end early


def test_run_without_max_steps_ends_at_a_step_without_a_total(fit: Run) -> None:
    options = ("--trainer.max_steps=-1", "--trainer.max_time=00:00:10:00")
    outcome = fit(*options, f"--trainer.callbacks={HERE}.StopsAtStep5", *UNSCHEDULED)
    assert outcome.code == 0, outcome.err
    (line,) = ENDED.findall(outcome.out)
    assert re.match(r"training ended at step 5\b(?! of)", line)
    assert list(printed_losses(outcome.out)) == [0, 4, 5]


@pytest.mark.parametrize("error", ["RuntimeError", "ValueError", "TypeError", "ImportError"])
def test_mistake_in_a_callback_is_shown_and_the_run_can_be_resumed(
    fit: Run, run: Run, error: str
) -> None:
    raising = parts("callbacks", (f"{HERE}.RaisesAtStep5", {"error": error}))
    with pytest.raises(Exception, match="a mistake of the user's own") as raised:
        fit(raising)
    assert raised.type.__name__ == error
    folder = Path("lightning_logs/version_0")
    assert (folder / "config.yaml").is_file()
    assert steps_of_last(folder) == 4
    assert recorded_steps("loss/val", folder) == {"TensorBoardLogger": [0, 4]}
    outcome = resume(run, folder, "--trainer.callbacks=null", "--trainer.max_steps=6")
    assert outcome.code == 0, outcome.err
    assert recorded_steps("loss/val", folder) == {"TensorBoardLogger": [0, 4, 6]}


def test_checkpoint_on_an_exception_is_not_resumed_unasked(fit: Run) -> None:
    keeping = ("OnExceptionCheckpoint", {"dirpath": "."})
    raising = (f"{HERE}.RaisesAtStep5", {"error": "RuntimeError"})
    with pytest.raises(RuntimeError, match="a mistake"):
        fit(parts("callbacks", keeping, raising))
    assert Path("on_exception.ckpt").is_file()
    outcome = fit(parts("callbacks", keeping))  # Lightning would resume from it
    assert is_one_line(outcome.err)
    assert "on_exception.ckpt" in outcome.err
    outcome = fit(parts("callbacks", keeping), "--ckpt_path=on_exception.ckpt")
    assert outcome.code == 0, outcome.err
    assert list(printed_losses(outcome.out)) == [6]


def test_loss_spike_ends_the_run(fit: Run) -> None:
    every_rise = {"warmup": 2, "rtol": 1e-9, "atol": 0.0}
    outcome = fit(parts("callbacks", ("SpikeDetection", every_rise)))
    assert outcome.code == 2
    assert is_one_line(outcome.err), outcome.err
    assert "spike" in outcome.err


# progress bars


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_bar_of_the_user_is_the_only_one(
    fit: Run, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    outcome = fit("--trainer.callbacks=TQDMProgressBar")
    assert outcome.code == 0, outcome.err
    assert "Epoch 0" in outcome.out + outcome.err
    assert "step/s" not in outcome.out + outcome.err  # the unit of our own bar
    outcome = fit("--trainer.callbacks=TQDMProgressBar", "--trainer.enable_progress_bar=false")
    assert is_one_line(outcome.err)


# precision, debugging


def final_losses(outcome: Outcome) -> tuple[float, float]:
    train, val = printed_losses(outcome.out)[6]
    return float(train), float(val)


@pytest.mark.parametrize(
    "precision", ["16-true", "bf16-true", "64-true", "16-mixed", "bf16-mixed", "64", "bf16", "16"]
)
def test_precisions_train_alike(fit: Run, run: Run, precision: str) -> None:
    expected = final_losses(fit())
    outcome = fit(f"--trainer.precision={precision}")
    if outcome.code == 2:
        assert is_one_line(outcome.err)
        assert "precision" in outcome.err
        assert "diverged" not in outcome.err
        assert not Path("lightning_logs/version_1").exists()
        return
    assert outcome.code == 0, outcome.err
    # the initial weights differ: random numbers of another type
    assert final_losses(outcome) == pytest.approx(expected, abs=0.4)
    resumed = resume(run, run_folder_of(outcome))
    assert resumed.code == 0, resumed.err


@pytest.mark.parametrize("precision", ["16-true", "16-mixed"])
def test_sum_of_losses_may_exceed_the_largest_half(fit: Run, precision: str) -> None:
    Path("long.txt").write_text(pastiche()[:20_000])  # 16,000 val losses of 4.2
    options = ("--data.corpus=long.txt", "--data.val_fraction=0.85", "--trainer.max_steps=2")
    outcome = fit(*options, "--data.batch_size=64", f"--trainer.precision={precision}")
    if outcome.code == 2:
        assert "precision" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    assert "inf" not in outcome.out


def test_overfit_batches_repeats_the_first_batches(fit: Run) -> None:
    options = ("--trainer.max_steps=250", "--trainer.val_check_interval=250", *UNSCHEDULED)
    large = ("--model.learning_rate=1e-2", "--model.n_embd=32")
    outcome = fit("--trainer.overfit_batches=1", *options, *large, "--trainer.log_every_n_steps=50")
    assert outcome.code == 0, outcome.err
    losses = tensorboard_scalars(run_folder_of(outcome))["loss/batch"]
    assert [step for step, _ in losses] == [50, 100, 150, 200, 250]
    assert losses[-1][1] < 0.05


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("accumulate_grad_batches=2",),
        ("logger=CSVLogger", "logger.save_dir=."),
        ("logger=false",),
    ],
)
def test_fast_dev_run_leaves_no_files(fit: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    outcome = fit(*flag("fast_dev_run=true", *options).options)
    assert outcome.code == 0, outcome.err
    assert list(printed_losses(outcome.out)) == [1]
    assert "None" not in outcome.out
    assert written(tmp_path) == set()


@pytest.mark.parametrize("options", [(), ("accumulate_grad_batches=2",), ("fast_dev_run=3",)])
def test_fast_dev_run_on_resume_changes_no_file(
    fit: Run, run: Run, tmp_path: Path, options: tuple[str, ...]
) -> None:
    folder = run_folder_of(fit())
    before = files(tmp_path)
    outcome = run("fit", f"--ckpt_path={folder}", *flag("fast_dev_run=true", *options).options)
    assert outcome.code == 0, outcome.err
    assert files(tmp_path) == before
