"""The output of a run: terminal, TensorBoard and checkpoints; none of it affects training."""

import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.generation.generate import sample_text
from nanogpt.insight.ngrams import NAMES
from nanogpt.training import console
from nanogpt.training.callbacks import throughput
from nanogpt.training.callbacks.progress_bar import StepBar
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Run
from tests.training.oracles import curves, events, printed_losses, run_folder, saved_weights

CHECKPOINTS = {"best.ckpt", "best.safetensors", "last.ckpt", "last.safetensors"}
EVALUATION_METRICS = ["loss", "perplexity", "bits_per_character"]
TRAINING_METRICS = ["loss/batch", "learning_rate", "characters_per_second"]
NGRAM_METRICS = [f"ngrams/{n}_{kind}" for n in NAMES.values() for kind in ("entropy", "held_out")]


# TensorBoard


def test_curves_have_every_evaluation_and_equal_the_printed_losses(fit: Run) -> None:
    printed = printed_losses(fit().out)
    recorded, found = events(run_folder()), curves(run_folder())
    evaluations = [f"{name}/{split}" for name in EVALUATION_METRICS for split in ("train", "val")]
    evaluations += ["loss/best_val", *NGRAM_METRICS]
    assert found.keys() == {*evaluations, *TRAINING_METRICS}
    for tag in evaluations:
        steps = [event.step for event in recorded.Scalars(tag)]
        assert steps == [0, 4, 6]  # first, interval and last, each once
    for step, losses in printed.items():
        for split, loss in zip(("train", "val"), losses, strict=True):
            value = found[f"loss/{split}"][step]
            assert f"{value:.4f}" == loss
            assert found[f"perplexity/{split}"][step] == pytest.approx(math.exp(value), rel=1e-6)
            bits = found[f"bits_per_character/{split}"][step]
            assert bits == pytest.approx(value / math.log(2), rel=1e-6)


@pytest.mark.parametrize(
    ("interval", "micro_batches", "steps"),
    [(1, 1, [1, 2, 3, 4, 5, 6]), (2, 2, [2, 4, 6]), (4, 1, [4, 6])],
)
def test_log_every_n_steps_counts_optimizer_steps(
    fit: Run, interval: int, micro_batches: int, steps: list[int]
) -> None:
    fit(
        f"--trainer.log_every_n_steps={interval}",
        f"--trainer.accumulate_grad_batches={micro_batches}",
    )
    found = curves(run_folder())
    for tag in ("loss/batch", "learning_rate"):
        assert list(found[tag]) == steps, tag
    assert set(found["characters_per_second"]) <= set(steps)  # none after an evaluation
    assert min(found["characters_per_second"].values()) > 0
    assert all(3 < loss < 5 for loss in found["loss/batch"].values())  # of a whole batch


def test_characters_per_second_excludes_evaluations(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(throughput.time, "perf_counter", tick)
    fit()
    # 4 windows of 8 characters per step; the timer starts after the first step and after each
    # evaluation, and each reading of the clock takes a second
    assert curves(run_folder())["characters_per_second"] == {2: 32, 4: 64, 6: 64}


def test_each_evaluation_logs_a_sample(fit: Run) -> None:
    fit()
    samples = {
        event.step: make_ndarray(event.tensor_proto).item().decode()
        for event in events(run_folder()).Tensors("sample/text_summary")
    }
    assert list(samples) == [0, 4, 6]
    for sample in samples.values():
        lines = sample.split("\n")
        assert all(line.startswith("    ") for line in lines)  # Markdown code block
        assert len("\n".join(line[4:] for line in lines)) == 20
    last = read_checkpoint(run_folder() / "checkpoints" / "last.safetensors")
    text = sample_text(last.model, last.tokenizer, 20, seed=6)
    assert samples[6] == "\n".join("    " + line for line in text.split("\n"))


def test_train_and_val_loss_share_charts_with_ngram_losses(fit: Run) -> None:
    fit()
    (event,) = events(run_folder()).Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    both, with_ngrams, _ = layout.category[0].chart
    assert list(both.multiline.tag) == ["loss/train", "loss/val"]
    drawn = [
        tag for tag in curves(run_folder()) for p in with_ngrams.multiline.tag if re.match(p, tag)
    ]
    assert set(drawn) == {"loss/train", "loss/val", *NGRAM_METRICS}


def test_ngram_losses_are_constant_curves(fit: Run) -> None:
    fit()
    found = curves(run_folder())
    for tag in NGRAM_METRICS:
        assert list(found[tag]) == [0, 4, 6]
        assert len(set(found[tag].values())) == 1
    n_grams = [found[f"ngrams/{name}_entropy"][0] for name in NAMES.values()]
    assert n_grams == sorted(n_grams, reverse=True)


def test_best_val_loss_so_far_is_logged(fit: Run) -> None:
    diverging = ("--model.learning_rate=0.3", "--model.warmup_steps=0", "--model.schedule=constant")
    fit("--trainer.max_steps=2", "--trainer.val_check_interval=1", *diverging)
    found = curves(run_folder())
    losses = found["loss/val"]
    assert losses[1] < losses[0] < losses[2]
    assert found["loss/best_val"] == {0: losses[0], 1: losses[1], 2: losses[1]}


def test_hyperparameters_are_logged_with_sortable_losses(fit: Run) -> None:
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
    assert sortable == ["loss/best_val"]


# no effect on training


def test_evaluating_sampling_and_timing_do_not_affect_training(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--model.dropout=0.3", "--trainer.accumulate_grad_batches=2")
    fit(*settings, "--trainer.val_check_interval=2")
    fit(*settings, "--trainer.val_check_interval=100")
    monkeypatch.setattr(console, "LONG_ON_CPU", 0)
    fit(*settings, "--trainer.log_every_n_steps=1")
    first, *others = [saved_weights(version) for version in range(3)]
    for weights in others:
        assert all(torch.equal(first[name], weights[name]) for name in first)


def test_best_checkpoint_has_the_lowest_val_loss(fit: Run) -> None:
    every_step = ("--trainer.max_steps=2", "--trainer.val_check_interval=1")
    diverging = ("--model.learning_rate=0.3", "--model.warmup_steps=0", "--model.schedule=constant")
    printed = fit(*every_step, *diverging).out
    losses = {step: float(val) for step, (_, val) in printed_losses(printed).items()}
    assert losses[1] < losses[0] < losses[2]
    assert f"best val loss {losses[1]:.4f} at step 1" in printed
    steps = [
        torch.load(run_folder() / "checkpoints" / f"{name}.ckpt", weights_only=True)["global_step"]
        for name in ("best", "last")
    ]
    assert steps == [1, 2]


# the terminal


def test_stderr_is_empty_without_problems(fit: Run) -> None:
    assert fit().err == ""


def test_header_names_corpus_size_and_device(fit: Run) -> None:
    lines = fit().out.splitlines()
    assert lines[:2] == [
        "corpus text.txt: 5,000 characters, 65 distinct; 4,500 train, 500 val",
        "0.002033 M parameters",
    ]
    assert lines[2].startswith("training on cpu in 32-true")
    assert "hours" not in "\n".join(lines)


def test_long_cpu_run_prints_its_duration_and_an_alternative(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LONG_ON_CPU", 1)
    monkeypatch.setattr(console, "measure_step", lambda *_: 1500.0)
    out = fit().out
    assert "estimated time: about 2.5 hours on this CPU" in out  # six steps of 1500 s
    assert "--config quickstart" in out


def test_step_time_is_the_fastest_of_three_on_a_sixteenth_of_a_batch(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter([0.0, 50.0, 100.0, 115.0, 200.0, 220.0])  # the second step takes 15 s
    monkeypatch.setattr(console.time, "perf_counter", lambda: next(readings))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data = CharDataModule(text, block_size=8, batch_size=64)
    model = LanguageModel("bigram", block_size=8, vocabulary="ab")
    model.configure_model()
    assert console.measure_step(trainer, model, data) == 15 * 64 / 4
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(("micro_batches", "steps"), [(1, [1, 2, 3]), (2, [0, 1, 1, 2, 2, 3])])
def test_progress_bar_counts_optimizer_steps(micro_batches: int, steps: list[int]) -> None:
    bar = StepBar()
    trainer = SimpleNamespace(max_steps=8, global_step=5, accumulate_grad_batches=micro_batches)
    bar.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert bar.bar is not None
    assert (bar.bar.total, bar.bar.n) == (8, 5)  # starts at the current step
    for step in steps:
        trainer.global_step = 5 + step
        bar.on_train_batch_end(trainer)  # type: ignore[arg-type]
        assert bar.bar.n == 5 + step
    bar.on_train_end()
    assert bar.bar.disable


# trainer settings


def test_run_without_logger_has_a_folder_but_no_curves(fit: Run) -> None:
    outcome = fit("--trainer.logger=false")
    assert (outcome.code, outcome.err) == (0, "")
    assert list(printed_losses(outcome.out)) == [0, 4, 6]
    files = {path.name for path in run_folder().rglob("*") if path.is_file()}
    assert files - {".lock"} == {"config.yaml", *CHECKPOINTS}


def test_fast_dev_run_takes_one_step_and_leaves_no_files(fit: Run, tmp_path: Path) -> None:
    outcome = fit("--trainer.fast_dev_run=true")
    assert outcome.code == 0
    assert list(printed_losses(outcome.out)) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
    assert "None" not in outcome.out


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("enable_checkpointing=false", set[str]()),
        ("max_steps=0", set[str]()),
        ("limit_val_batches=0", {"last"}),
        ("max_steps=4", {"best", "last"}),
    ],
)
def test_only_these_checkpoints_are_saved(fit: Run, option: str, names: set[str]) -> None:
    assert fit(f"--trainer.{option}").code == 0
    assert {path.stem for path in run_folder().glob("checkpoints/*")} == names


def test_time_limit_ends_with_an_evaluation(fit: Run) -> None:
    outcome = fit(
        *("--trainer.max_steps=-1", "--trainer.max_time=00:00:00:01"),
        *("--trainer.val_check_interval=1000000", "--model.schedule=constant"),
    )
    assert outcome.code == 0, outcome.err
    first, last = printed_losses(outcome.out)
    assert (first, last > 0) == (0, True)
    checkpoint = run_folder() / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["global_step"] == last


def test_divergence_gives_a_one_line_error(fit: Run) -> None:
    outcome = fit("--model.learning_rate=1e30", "--model.warmup_steps=0")
    assert outcome.code == 2
    assert "learning_rate" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_corpus_whose_name_is_not_utf8(fit: Run, run: Run) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    try:
        Path(name).write_text(Path("text.txt").read_text())
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    outcome = fit(f"--data.corpus={name}", "--trainer.logger=[TensorBoardLogger,CSVLogger]")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("corpus caf\\udce9.txt: 5,000 characters")
    resumed = run("fit", "--ckpt_path=last", "--trainer.max_steps=8")
    assert resumed.code == 0, resumed.err
    validated = run("validate")
    assert (validated.code, validated.err) == (0, "")
    assert "on caf\\udce9.txt:" in validated.out
