"""The benchmarks run and report what they measured; no test asserts a time."""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.text import corpora
from tests.command_lines import SHARED_TEXT

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    path for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")
)
TINY = """
model: {architecture: gpt, block_size: 8, n_layer: 1, n_head: 3, n_embd: 16, dropout: 0.1,
        learning_rate: 1.0e-3}
data: {batch_size: 4, offline_corpus: pastiche}
trainer: {max_steps: 3, val_check_interval: 2}
"""


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let benchmarks import each other as they do when run as scripts."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(corpora, "_fetch", lambda _: "no network in a test")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/train.py with all loops in this process; restores PyTorch's settings."""
    monkeypatch.setattr("training_loops.WARM_UP_SECONDS", 0.0)
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    Path("tiny.yaml").write_text(TINY, encoding="utf-8")
    module = importlib.import_module("train")
    monkeypatch.setattr(module, "run_in_process", module.training_loops.run)
    with torch.random.fork_rng():
        yield module
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_prints_its_help(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code
    assert f"benchmarks/{path.name}" in capsys.readouterr().out


def test_gpu_script_prints_its_help() -> None:
    command = ["bash", str(BENCHMARKS / "gpu.sh"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "bash benchmarks/gpu.sh [OUT]" in done.stdout
    assert not Path("--help").exists()


@pytest.fixture
def rehearsal() -> Iterator[subprocess.Popen[str]]:
    """benchmarks/gpu.sh on a CPU, without a network, which writes to the folder ``out``."""
    variables = {"NANOGPT_GPU_SH_REHEARSAL": "1", "PYTHON": sys.executable}
    variables |= {"https_proxy": "http://127.0.0.1:1", "OMP_NUM_THREADS": "1"}
    if SHARED_TEXT.is_file():
        variables["NANOGPT_DATA_DIR"] = str(SHARED_TEXT.parent)
    with subprocess.Popen(
        ["bash", str(BENCHMARKS / "gpu.sh"), "out"],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        yield process
        process.kill()


CHECKS = {
    "versions": {"machine", "packages", "attention"},
    "tests": {"tests"},
    "rehearse": {"compiling", "gradients against uncompiled ones", "counters", "generated code"},
    "step": {"uncompiled"},
}


def archived(name: str) -> str:
    """Return the text of a file in the archive."""
    with tarfile.open("out/results.tar.gz") as archive:
        file = archive.extractfile(f"./{name}")
        assert file is not None
        return file.read().decode()


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.skipif(not SHARED_TEXT.is_file(), reason="times training on tiny Shakespeare")
def test_rehearsed_gpu_script_leaves_the_rows_of_every_step(
    rehearsal: "subprocess.Popen[str]",
) -> None:
    output, _ = rehearsal.communicate()
    assert rehearsal.returncode == 0, output
    for name, rows in CHECKS.items():
        assert {row["name"] for row in json.loads(archived(f"{name}.json"))} == rows
    report = json.loads(archived("results.json"))
    assert list(report["steps"]) == [*CHECKS, "fit", "train", "sampling"]
    assert {step["exit_code"] for step in report["steps"].values()} == {0}
    assert [row[0] for row in report["steps"]["fit"]["evaluations"]] == [0, 2, 4]
    loops = [row["loop"] for row in json.loads(archived("train.json"))["loops"]]
    assert loops == ["baseline", "baseline, bf16", "bare", "fit"]
    assert set(json.loads(archived("sampling.json"))["characters_per_second"]["1"]) > {"plain"}
    page = archived("results.md")
    assert "| attention | PyTorch, bf16: MATH" in page
    assert "cudagraph_skips: 0; graph_breaks: 0" in page
    assert "Self CPU" in page  # the profile
    with tarfile.open("out/results.tar.gz") as archive:
        names = archive.getnames()
    assert any(name.startswith("./generated_code/") for name in names)
    assert not any(
        "checkpoint" in name or name.endswith((".ckpt", ".safetensors")) for name in names
    )
    assert Path("out/results.tar.gz").stat().st_size < 2**20


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_stopped_gpu_script_leaves_the_finished_rows(rehearsal: "subprocess.Popen[str]") -> None:
    assert rehearsal.stdout is not None
    for line in rehearsal.stdout:
        if line.startswith("== tests"):
            break
    rehearsal.send_signal(signal.SIGTERM)
    rest = rehearsal.stdout.read()
    assert rehearsal.wait() == 130, rest
    assert "== rehearse" not in rest
    rows = json.loads(archived("versions.json"))
    assert {row["name"] for row in rows} == CHECKS["versions"]
    steps = json.loads(archived("results.json"))["steps"]
    assert {name: step["exit_code"] for name, step in steps.items()} == {
        "versions": 0,
        "tests": 130,
    }


def test_all_loops_are_timed(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--configs", "tiny.yaml", "--turns", "2", "--rounds", "1", "--seconds", "0.001"]
    train.main([*options, "--json", "figures.json"])
    report = json.loads(Path("figures.json").read_text(encoding="utf-8"))
    rows = {row["loop"]: row for row in report["loops"]}
    assert list(rows) == ["baseline", "baseline, bf16", "bare", "fit"]
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["characters_per_second"] == pytest.approx(32e3 / row["ms_per_step"])
        assert row["of_peak"] > 0
    slow, fast = rows["baseline"]["ms_per_step"], rows["fit"]["ms_per_step"]
    assert rows["baseline"]["a/c"] == pytest.approx(slow / fast)
    assert rows["fit"]["c/b"] == pytest.approx(fast / rows["bare"]["ms_per_step"])
    assert not Path("lightning_logs").exists()
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("tiny.yaml")]) == 4


@pytest.mark.parametrize("name", ["bare", "fit"])
def test_our_loops_use_the_kernels(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    called = set[str]()
    for kernel in (kernels.FusedAttention, kernels.FastDropout):

        def note(self: Any, *inputs: Any, forward: Any = kernel.forward) -> Any:
            called.add(type(self).__name__)
            return forward(self, *inputs)

        monkeypatch.setattr(kernel, "forward", note)
    train.training_loops.run(name, Path("tiny.yaml"), 1, 0.001)
    assert called == {"FusedAttention", "FastDropout"}


def test_each_loop_runs_in_a_separate_process(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("train")
    monkeypatch.setattr(module.training_loops, "run", os.getpid)
    assert module.run_in_process() != os.getpid()
    monkeypatch.setattr(module.training_loops, "run", os.abort)
    assert "its process was killed" in module.run_in_process()["failure"]


def test_failed_loop_does_not_affect_the_others(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nhere")

    monkeypatch.setattr("baseline.Head.forward", fail)
    rows = {row["loop"]: row for row in train.measure("tiny.yaml", 1, 1, 0.001)}
    assert rows["baseline"]["failure"] == "RuntimeError: no compiler"
    assert "failed: RuntimeError: no compiler" in train.line(rows["baseline"])
    assert rows["fit"]["c/b"] > 0


def test_rounds_begin_and_end_between_steps_of_lightning(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = train.training_loops
    read_at, steps = [], []
    monkeypatch.setattr(loops, "MAX_STEPS_PER_ROUND", 4)
    monkeypatch.setattr(loops, "now", lambda: read_at.append(len(steps)) or 0.0)
    training_step = loops.lightning_cli.LanguageModel.training_step

    def counted(*arguments: Any) -> Any:
        steps.append(0)
        return training_step(*arguments)

    monkeypatch.setattr(loops.lightning_cli.LanguageModel, "training_step", counted)
    loops.run("fit", Path("tiny.yaml"), 2, float("inf"))
    # the warm-up, then two rounds; Lightning fetches a batch one step ahead
    assert read_at == [0, 2, 2, 6, 6, 10]


@pytest.mark.parametrize(
    ("name", "flop"),
    [("gpt10m", 1.177e12), ("bigram", 0.0)],  # about 1.18e12 according to the reference
)
def test_operations_of_a_step(train: ModuleType, name: str, flop: float) -> None:
    sizes = train.Sizes.from_config(train.config_path(name))
    characters = sizes.batch_size * sizes.block_size
    counted = train.flop_per_character(sizes, 10_788_929) * characters
    assert counted == pytest.approx(flop, rel=1e-3)


def test_end_to_end_command_records_time_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    end_to_end = importlib.import_module("end_to_end")
    command = end_to_end.Command("hello", ["-c", "print('hello')"])
    monkeypatch.setattr(end_to_end, "find_tiny_shakespeare", lambda: None)
    with pytest.raises(UserError, match="NANOGPT_DATA_DIR"):
        command.run(Path())
    monkeypatch.setattr(end_to_end, "find_tiny_shakespeare", lambda: Path(corpora.FILE))
    command.run(Path())
    assert len(command.seconds) == 1
    assert command.memory[0] > 2**20
    with pytest.raises(UserError, match=r"(?s)wrong failed: .*division by zero"):
        end_to_end.Command("wrong", ["-c", "1 / 0"]).run(Path())


@pytest.fixture
def speedups(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/speedups.py with a tiny model, whose curve is a sum of weights."""
    module = importlib.import_module("speedups")
    weight = lambda model, ids: model.blocks[0].mlp.up_proj.weight.sum().item()  # noqa: E731
    monkeypatch.setattr(module, "val_loss", weight)
    sizes = {"batch_size": 4, "block_size": 8, "n_layer": 1, "n_head": 3, "n_embd": 24}
    monkeypatch.setattr(module, "SIZES", replace(module.SIZES, **sizes, dropout=0.0))
    return module


def test_without_dropout_each_speed_up_changes_nothing_but_rounding(
    speedups: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = speedups.loss_curve(speedups.SHIPPED, 1, 8, "cpu")
    for name in speedups.VARIANTS.keys() - {"bf16 autocast", "compiled"}:
        assert speedups.loss_curve(name, 1, 8, "cpu") == pytest.approx(shipped, rel=1e-4)
    monkeypatch.setattr(speedups, "SIZES", replace(speedups.SIZES, dropout=0.3))
    dropped = speedups.loss_curve(speedups.SHIPPED, 1, 8, "cpu")
    for name in ("plain modules", "PyTorch's dropout"):
        assert speedups.loss_curve(name, 1, 8, "cpu") != pytest.approx(dropped, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        ("kernels installed", {"FastDropout", "FusedAttention"}),
        ("plain modules", set()),
        ("whole attention weights", {"FastDropout"}),
        ("PyTorch's dropout", {"FusedAttention"}),
        ("AdamW not fused", {"FastDropout", "FusedAttention"}),
    ],
)
def test_speed_up_variants_install_their_kernels(
    speedups: ModuleType, name: str, installed: set[str]
) -> None:
    model: nn.Module = speedups.build(speedups.VARIANTS[name], 17)
    modules = {type(module) for module in model.modules()}
    assert {m.__name__ for m in modules if m.__module__.startswith("nanogpt.kernels")} == installed
    assert (nn.Dropout in modules) == ("FastDropout" not in installed)


def test_report_contains_losses_and_failures() -> None:
    report = importlib.import_module("report")
    fit = "corpus tiny_shakespeare: 9\nstep 0: train loss 4.2901, val loss 4.2888\n"
    Path("fit.txt").write_text(fit, encoding="utf-8")
    Path("sampling.txt").write_text("Killed\n", encoding="utf-8")
    run = {"command": "python cli.py fit", "seconds": 12.34, "gpu_allocated_bytes": 3 * 2**20}
    Path("fit.run.json").write_text(json.dumps(run), encoding="utf-8")
    report.main(Path(), ["fit=0=13", "sampling=137=80"])
    page = Path("results.md").read_text(encoding="utf-8")
    assert "`python cli.py fit`; 12.3 s; 3 MiB peak allocated GPU memory." in page
    assert "| 0 | 4.2901 | 4.2846 | 4.2888 | 4.2820 |" in page
    assert "it left no figures; 80.0 s; **timed out**." in page
    written = json.loads(Path("results.json").read_text(encoding="utf-8"))
    assert written["steps"]["fit"]["evaluations"] == [[0, 4.2901, 4.2888]]
    assert written["steps"]["sampling"]["exit_code"] == 137
