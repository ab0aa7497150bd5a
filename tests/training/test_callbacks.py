"""What a run shows, on the terminal, in TensorBoard and its checkpoints; looking is free."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from nanogpt.generation.generate import sample_text
from nanogpt.generation.checkpoint import load_model
from nanogpt.insight.ngrams import NAMES
from nanogpt.training import callbacks, report
from nanogpt.training.progress_bar import StepBar
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Run
from tests.training.oracles import curves, events, kept_weights, printed_losses, run_folder

EVALUATED = ["loss", "perplexity", "bits_per_character"]
IN_TRAINING = ["loss/batch", "learning_rate", "characters_per_second"]
COUNTED = [f"ngrams/{n}_{kind}" for n in NAMES.values() for kind in ("entropy", "held_out")]


# TensorBoard


def test_curves_have_every_evaluation_and_equal_what_was_printed(fit: Run) -> None:
    printed = printed_losses(fit().out)
    recorded, found = events(run_folder()), curves(run_folder())
    evaluations = [f"{name}/{split}" for name in EVALUATED for split in ("train", "val")]
    evaluations += ["loss/best_val", *COUNTED]
    assert found.keys() == {*evaluations, *IN_TRAINING}
    for tag in evaluations:
        steps = [event.step for event in recorded.Scalars(tag)]
        assert steps == [0, 4, 6]  # first, interval, last, each once
    for step, losses in printed.items():
        for split, loss in zip(("train", "val"), losses, strict=True):
            value = found[f"loss/{split}"][step]
            assert f"{value:.4f}" == loss
            assert found[f"perplexity/{split}"][step] == pytest.approx(math.exp(value), rel=1e-6)
            bits = found[f"bits_per_character/{split}"][step]
            assert bits == pytest.approx(value / math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("interval", "parts", "steps"), [(1, 1, [1, 2, 3, 4, 5, 6]), (2, 2, [2, 4, 6]), (4, 1, [4])]
)
def test_training_is_logged_every_so_many_optimizer_steps(
    fit: Run, interval: int, parts: int, steps: list[int]
) -> None:
    fit(f"--trainer.log_every_n_steps={interval}", f"--trainer.accumulate_grad_batches={parts}")
    found = curves(run_folder())
    for tag in ("loss/batch", "learning_rate"):
        assert list(found[tag]) == steps, tag
    assert set(found["characters_per_second"]) <= set(steps)  # not of a step after an evaluation
    assert min(found["characters_per_second"].values()) > 0
    assert all(3 < loss < 5 for loss in found["loss/batch"].values())  # of a batch, not a part


def test_characters_per_second_counts_training_alone(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def second() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(callbacks.time, "perf_counter", second)
    fit()
    # 4 windows of 8 characters in a step; the clock starts after the first step that follows an
    # evaluation (those of steps 0 and 4), and a second passes each time that it is read
    assert curves(run_folder())["characters_per_second"] == {2: 32, 4: 64, 6: 32}


def test_a_sample_is_kept_of_each_evaluation(fit: Run) -> None:
    fit()
    samples = {
        event.step: make_ndarray(event.tensor_proto).item().decode()
        for event in events(run_folder()).Tensors("sample/text_summary")
    }
    assert list(samples) == [0, 4, 6]
    for sample in samples.values():
        lines = sample.split("\n")
        assert all(line.startswith("    ") for line in lines)  # Markdown's code block
        assert len("\n".join(line[4:] for line in lines)) == callbacks.SAMPLE_CHARACTERS
    model, tokenizer = load_model(run_folder() / "checkpoints" / "last.ckpt")
    text = sample_text(model, tokenizer, callbacks.SAMPLE_CHARACTERS, seed=6)
    assert samples[6] == "\n".join("    " + line for line in text.split("\n"))


def test_train_and_val_share_a_chart_with_what_counting_achieves(fit: Run) -> None:
    fit()
    (event,) = events(run_folder()).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    both, beside, _ = layout.category[0].chart
    assert list(both.multiline.tag) == ["loss/train", "loss/val"]
    drawn = [tag for tag in curves(run_folder()) for p in beside.multiline.tag if re.match(p, tag)]
    assert set(drawn) == {"loss/train", "loss/val", *COUNTED}


def test_what_counting_achieves_is_a_line_along_the_curve(fit: Run) -> None:
    fit()
    found = curves(run_folder())
    for tag in COUNTED:
        assert list(found[tag]) == [0, 4, 6]
        assert len(set(found[tag].values())) == 1
    n_grams = [found[f"ngrams/{name}_entropy"][0] for name in NAMES.values()]
    assert n_grams == sorted(n_grams, reverse=True)


def test_the_best_val_loss_so_far_is_kept(fit: Run) -> None:
    too_far = ("--model.learning_rate=0.3", "--model.warmup_steps=0", "--model.schedule=constant")
    fit("--trainer.max_steps=2", "--trainer.val_check_interval=1", *too_far)
    found = curves(run_folder())
    losses = found["loss/val"]
    assert losses[1] < losses[0] < losses[2]
    assert found["loss/best_val"] == {0: losses[0], 1: losses[1], 2: losses[1]}


def test_runs_can_be_sorted_by_settings_and_loss(fit: Run) -> None:
    fit("--model.dropout=0.25")
    plugin = events(run_folder()).PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"])
    shown = start.session_start_info.hparams
    assert shown["dropout"].number_value == 0.25
    assert shown["architecture"].string_value == "gpt"
    assert shown["parameters"].number_value == 2033
    assert shown["precision"].string_value == "32-true"
    assert shown["corpus_name"].string_value == "text.txt"
    experiment = HParamsPluginData.FromString(plugin["_hparams_/experiment"]).experiment
    sortable = [info.name.tag for info in experiment.metric_infos]
    assert {"loss/val", "loss/best_val"} <= set(sortable)


# looking is free


def test_neither_evaluating_nor_sampling_nor_measuring_touches_training(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--model.dropout=0.3", "--trainer.accumulate_grad_batches=2")
    fit(*settings, "--trainer.val_check_interval=1")
    fit(*settings, "--trainer.val_check_interval=100")
    monkeypatch.setattr(report, "LONG_ON_A_CPU", 0)
    fit(*settings, "--trainer.log_every_n_steps=1")
    first, *others = [kept_weights(version) for version in range(3)]
    for weights in others:
        assert all(torch.equal(first[name], weights[name]) for name in first)


def test_best_is_the_evaluation_of_the_least_val_loss(fit: Run) -> None:
    every_step = ("--trainer.max_steps=2", "--trainer.val_check_interval=1")
    too_far = ("--model.learning_rate=0.3", "--model.warmup_steps=0", "--model.schedule=constant")
    printed = fit(*every_step, *too_far).out
    losses = {step: float(val) for step, (_, val) in printed_losses(printed).items()}
    assert losses[1] < losses[0] < losses[2]
    assert f"best val loss {losses[1]:.4f} at step 1" in printed
    kept = [
        torch.load(run_folder() / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    ]
    assert kept == [1, 2]


# the terminal


def test_nothing_is_said_on_stderr_when_all_is_well(fit: Run) -> None:
    assert fit().err == ""


def test_a_run_is_introduced(fit: Run) -> None:
    lines = fit().out.splitlines()
    assert lines[:2] == [
        "corpus text.txt: 5,000 characters, 65 distinct; 4,500 to train on, 500 to validate",
        "0.002033 M parameters",
    ]
    assert lines[2].startswith("training on cpu in 32-true")
    assert "hours" not in "\n".join(lines)


def test_a_long_run_on_a_cpu_is_announced_with_a_shorter_one(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "LONG_ON_A_CPU", 1)
    monkeypatch.setattr(report, "seconds_per_step", lambda *_: 1500.0)
    out = fit().out
    assert "this will take about 2.5 hours on this CPU" in out  # six steps of 1500 s
    assert "configs/quickstart.yaml" in out


def test_a_step_is_measured_on_a_sixteenth_of_a_batch_by_the_fastest_of_three(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([0.0, 50.0, 100.0, 115.0, 200.0, 220.0])  # the second step takes 15 s
    monkeypatch.setattr(report.time, "perf_counter", lambda: next(readings))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data = CharDataModule(text, block_size=8, batch_size=64)
    model = LanguageModel("bigram", block_size=8, vocabulary="ab")
    model.configure_model()
    assert report.seconds_per_step(trainer, model, data) == 15 * 64 / 4
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("parts", "moves"), [(1, [1, 2, 3]), (2, [0, 1, 1, 2, 2, 3])])
def test_the_bar_counts_optimizer_steps(parts: int, moves: list[int]) -> None:
    bar = StepBar()
    trainer = SimpleNamespace(max_steps=8, global_step=5, accumulate_grad_batches=parts)
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert bar.bar is not None
    assert (bar.bar.total, bar.bar.n) == (8, 5)  # goes on where a run stands
    for move in moves:
        trainer.global_step = 5 + move
        bar.on_train_batch_end(trainer)  # type: ignore[arg-type]
        assert bar.bar.n == 5 + move
    bar.on_train_end()
    assert bar.bar.disable


# with less than all of it


def test_without_a_logger_nothing_is_left_and_that_is_said(fit: Run, tmp_path: Path) -> None:
    outcome = fit("--trainer.logger=false")
    assert outcome.code == 0
    assert list(printed_losses(outcome.out)) == [0, 4, 6]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert outcome.err.count("\n") == 1
    assert "leaves no folder" in outcome.err
    assert str(tmp_path) not in outcome.out  # where nothing will be found


def test_a_fast_development_run_takes_a_step_and_leaves_nothing(fit: Run, tmp_path: Path) -> None:
    outcome = fit("--trainer.fast_dev_run=true")
    assert outcome.code == 0
    assert list(printed_losses(outcome.out)) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert "None" not in outcome.out


@pytest.mark.parametrize(
    ("option", "evaluations", "kept"),
    [
        ("enable_checkpointing=false", [0, 4, 6], []),
        ("num_sanity_val_steps=0", [4, 6], ["best.ckpt", "last.ckpt"]),
        ("limit_val_batches=1", [0, 4, 6], ["best.ckpt", "last.ckpt"]),
        ("limit_val_batches=0", [], ["last.ckpt"]),
        ("max_steps=0", [0], []),
        ("val_check_interval=100", [0, 6], ["best.ckpt", "last.ckpt"]),
        ("limit_train_batches=2", [0, 4, 6], ["best.ckpt", "last.ckpt"]),
        ("max_steps=4", [0, 4], ["best.ckpt", "last.ckpt"]),
        ("detect_anomaly=true", [0, 4, 6], ["best.ckpt", "last.ckpt"]),
        ("gradient_clip_val=1.0", [0, 4, 6], ["best.ckpt", "last.ckpt"]),
    ],
)
def test_the_trainers_switches_work(
    fit: Run, option: str, evaluations: list[int], kept: list[str]
) -> None:
    outcome = fit(f"--trainer.{option}")
    assert outcome.code == 0, outcome.err
    assert list(printed_losses(outcome.out)) == evaluations
    assert sorted(path.name for path in run_folder().glob("checkpoints/*")) == kept


def test_a_time_limit_ends_with_an_evaluation(fit: Run) -> None:
    outcome = fit(
        *("--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"),
        *("--trainer.val_check_interval=1000000", "--model.schedule=constant"),
    )
    assert outcome.code == 0, outcome.err
    first, last = printed_losses(outcome.out)
    assert (first, last > 0) == (0, True)
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == last


def test_a_run_that_diverges_ends_in_one_line(fit: Run) -> None:
    outcome = fit("--model.learning_rate=1e30", "--model.warmup_steps=0")
    assert outcome.code == 2
    assert "learning_rate" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
