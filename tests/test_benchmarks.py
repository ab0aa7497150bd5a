"""The benchmarks of training run, and say what they measured; no test says how fast."""

import importlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from nanogpt.text import corpora

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = """
model: {architecture: gpt, block_size: 8, n_layer: 1, n_head: 3, n_embd: 16, dropout: 0.1,
        learning_rate: 1.0e-3}
data: {batch_size: 4, offline_corpus: pastiche}
trainer: {max_steps: 3, val_check_interval: 2}
"""


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/train.py, as a script finds its neighbours; leaves PyTorch as it was."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(corpora, "_fetch", lambda: "no network in a test")
    monkeypatch.setattr("training_loops.WARM_UP", 0.0)
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    module = importlib.import_module("train")
    monkeypatch.setattr(module, "apart", module.training_loops.run)  # a process takes seconds to start
    with torch.random.fork_rng():
        yield module
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)


def test_all_loops_are_timed(
    train: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--configs", "tiny.yaml", "--turns", "2", "--rounds", "1", "--seconds", "0.001"]
    train.main([*options, "--json", "figures.json"])
    report = json.loads(Path("figures.json").read_text(encoding="utf-8"))
    rows = {row["loop"]: row for row in report["loops"]}
    assert list(rows) == ["textbook", "textbook, bf16", "bare", "fit"]
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["characters_per_second"] == pytest.approx(32e3 / row["ms_per_step"])
        assert row["of_peak"] > 0
    slow, fast = rows["textbook"]["ms_per_step"], rows["fit"]["ms_per_step"]
    assert rows["textbook"]["a/c"] == pytest.approx(slow / fast)
    assert rows["fit"]["c/b"] == pytest.approx(fast / rows["bare"]["ms_per_step"])
    assert not Path("lightning_logs").exists()
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("tiny.yaml")]) == 4


def test_a_loop_has_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("train")
    monkeypatch.setattr(module.training_loops, "run", os.getpid)
    assert module.apart() != os.getpid()
    monkeypatch.setattr(module.training_loops, "run", os.abort)
    assert "its process was killed" in module.apart()["failure"]


def test_a_loop_that_fails_leaves_the_others_their_figures(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr("baseline.Head.forward", fail)
    rows = {row["loop"]: row for row in train.measure("tiny.yaml", 1, 1, 0.001)}
    assert rows["textbook"]["failure"] == "RuntimeError: no compiler"
    assert "failed: RuntimeError: no compiler" in train.line(rows["textbook"])
    assert rows["fit"]["c/b"] > 0


def test_the_steps_of_a_round_are_those_that_lightning_took(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, taken = [], []
    monkeypatch.setattr(train.training_loops, "MOST_STEPS", 4)
    monkeypatch.setattr(train.training_loops, "now", lambda: asked.append(len(taken)) or 0.0)
    step = train.training_loops.cli.LanguageModel.training_step
    note = lambda *arguments: (taken.append(0), step(*arguments))[1]  # noqa: E731
    monkeypatch.setattr(train.training_loops.cli.LanguageModel, "training_step", note)
    train.training_loops.run("fit", Path("tiny.yaml"), 2, float("inf"))
    # the warm-up, then two rounds, each from its first to its last step; Lightning asks one ahead
    assert asked == [0, 2, 2, 6, 6, 10]


@pytest.mark.parametrize(
    ("name", "flop"),
    [("gpt10m", 1.177e12), ("bigram", 0.0)],  # the reference says about 1.18e12
)
def test_operations_of_a_step(train: ModuleType, name: str, flop: float) -> None:
    sizes = train.Sizes.of(train.config_path(name))
    characters = sizes.batch_size * sizes.block_size
    found = train.flop_per_character(sizes, 10_788_929) * characters
    assert found == pytest.approx(flop, rel=1e-3)


def test_without_dropout_each_speed_up_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(corpora, "_fetch", lambda: "no network in a test")
    speedups = importlib.import_module("speedups")
    weight = lambda net, ids: net.blocks[0].mlp.up_proj.weight.sum().item()  # noqa: E731
    monkeypatch.setattr(speedups, "val_loss", weight)
    sizes = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 3, "n_embd": 24}
    monkeypatch.setattr(speedups, "SIZES", replace(speedups.SIZES, **sizes, dropout=0.0))
    shipped = speedups.curve("as shipped", 1, 8, "cpu")
    for variant in ("attention weights whole", "PyTorch's dropout", "AdamW not fused"):
        assert speedups.curve(variant, 1, 8, "cpu") == pytest.approx(shipped, rel=1e-4)
    monkeypatch.setattr(speedups, "SIZES", replace(speedups.SIZES, dropout=0.3))
    dropped = speedups.curve("as shipped", 1, 8, "cpu")
    assert speedups.curve("PyTorch's dropout", 1, 8, "cpu") != pytest.approx(dropped, rel=1e-6)


def test_the_page_of_results_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = importlib.import_module("report")
    fit = "corpus tiny_shakespeare: 9\nstep 0: train loss 4.2901, val loss 4.2888\n"
    Path("fit.txt").write_text(fit, encoding="utf-8")
    Path("sampling.txt").write_text("Killed\n", encoding="utf-8")
    run = {"command": "python cli.py fit", "seconds": 12.34, "gpu_allocated_bytes": 3 * 2**20}
    Path("fit.run.json").write_text(json.dumps(run), encoding="utf-8")
    report.main(Path(), ["fit=0=13", "sampling=137=80"])
    page = Path("results.md").read_text(encoding="utf-8")
    assert "`python cli.py fit`; 12.3 s; 3 MiB of GPU memory allocated at most." in page
    assert "| 0 | 4.2901 | 4.2846 | 4.2888 | 4.2820 |" in page
    assert "no figures of its own; 80.0 s; **ended by its time bound**." in page
    written = json.loads(Path("results.json").read_text(encoding="utf-8"))
    assert written["steps"]["fit"]["evaluations"] == [[0, 4.2901, 4.2888]]
    assert written["steps"]["sampling"]["exit_code"] == 137
