"""Compiled runs equal uncompiled ones, bit for bit if compilation fails."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.models import Model, build_model
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.compiled import CompiledLoss, plan_compilation
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.losses import next_character_loss
from tests.command_lines import Run, is_one_line
from tests.training.oracles import curves, distance, run_folder, saved_weights

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
EVERY = "--trainer.log_every_n_steps=1"
DROPOUT = "--model.dropout=0.3"
SIZES = {"block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 12}
ARCHITECTURES = [("gpt", {}), ("modern", {}), ("modern", {"token_shift": True})]


@pytest.fixture
def compilable() -> None:
    """Skip a test without a C++ compiler for torch.compile."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")


def trained_gpt(version: int) -> Model:
    model = build_model("gpt", 65, block_size=8, n_layer=1, n_head=2, n_embd=8)
    model.load_state_dict(saved_weights(version))
    return model


# results


@pytest.mark.usefixtures("compilable")
def test_distillation_loss_is_compiled_too(fit: Run) -> None:
    fit()
    distilled = (EVERY, f"--teachers=[{run_folder(0)}]", "--trainer.max_steps=3")
    for choice in ("false", "true"):
        outcome = fit(*distilled, f"--compile={choice}")
        assert (outcome.code, outcome.err) == (0, "")
    plain, compiled = (curves(run_folder(n))["loss/batch"] for n in (1, 2))
    assert compiled == pytest.approx(plain, abs=1e-5)
    fit(EVERY, "--trainer.max_steps=3")
    assert plain != pytest.approx(curves(run_folder(3))["loss/batch"], abs=1e-3)


@pytest.mark.usefixtures("compilable")
def test_compiled_run_equals_an_uncompiled_one_and_resumes_uncompiled(fit: Run) -> None:
    options = (EVERY, "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.1")
    assert fit(*options).code == 0
    compiled = fit(*options, "--compile=true", "--trainer.max_steps=3")
    assert (compiled.code, compiled.err) == (0, "")
    assert yaml.safe_load((run_folder(1) / "config.yaml").read_text())["compile"] is True
    more = ("--compile=false", "--trainer.max_steps=6", "--model.schedule=cosine")
    done = fit("--ckpt_path", str(run_folder(1)), *options, *more)
    assert "notice: compile changed from True to False\n" in done.err
    for name in ("loss/batch", "loss/val"):
        plain, found = curves(run_folder(0))[name], curves(run_folder(1))[name]
        assert {step: found[step] for step in plain} == pytest.approx(plain, abs=1e-5), name
    assert list(saved_weights(0)) == list(saved_weights(1))
    assert distance(trained_gpt(0), saved_weights(1)) < 1e-5


@pytest.mark.parametrize(("architecture", "settings"), ARCHITECTURES)
def test_step_on_a_gpu_is_traced_as_one_graph(architecture: str, settings: dict[str, Any]) -> None:
    # without CUDA, "meta" is a device other than the CPU, and takes the same branches
    with torch.device("meta"):
        net = kernels.install(build_model(architecture, 65, **SIZES, dropout=0.2, **settings))
        windows = torch.zeros(4, 8, dtype=torch.long)
    torch._dynamo.reset()
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    run = torch.compile(next_character_loss, backend=keep, fullgraph=True)
    assert run(net, windows[:, :-1], windows[:, 1:]).shape == ()
    (graph,) = graphs
    operators = [node.target for node in graph.graph.nodes]
    assert operators.count(nn.functional.scaled_dot_product_attention) == SIZES["n_layer"]
    assert operators.count(nn.functional.dropout) == 2 * SIZES["n_layer"]
    inputs = [n.meta["tensor_dict"] for n in graph.graph.nodes if n.op == "placeholder"]
    static = [tensor for tensor in inputs if tensor.get("_dynamo_static_input_type")]
    assert len(static) == len(list(net.parameters()))  # which CUDA graphs do not copy


# failures


def broken_compiler(stage: str) -> Callable[..., Loss]:
    """Return a compiler that draws random numbers and then fails at a stage."""

    def compile(loss: Loss, **_: Any) -> Loss:
        calls = 0

        def fail(*_: Any) -> None:
            raise RuntimeError("no Triton\nanywhere")

        def run(net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            torch.rand(7)
            if stage == "forward" or (stage == "replay" and calls == 3):
                fail()
            value = loss(net, ids, targets)
            if stage == "backward":
                value.register_hook(fail)
            return value

        return fail() or run if stage == "compile" else run

    return compile


@pytest.mark.parametrize("stage", ["compile", "forward", "backward", "replay"])
def test_failed_compilation_leaves_the_run_bit_identical(
    fit: Run, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    options = (EVERY, DROPOUT, "--trainer.accumulate_grad_batches=2")
    assert fit(*options).code == 0
    monkeypatch.setattr(torch, "compile", broken_compiler(stage))
    outcome = fit(*options, "--compile=true")
    assert outcome.code == 0
    file = run_folder(1) / "compile_error.txt"
    assert outcome.err == (
        "notice: torch.compile failed, training continues uncompiled: RuntimeError: no Triton (the "
        f"whole error is in {file})\n"
    )
    assert "Traceback" in file.read_text(encoding="utf-8")
    assert "no Triton\nanywhere" in file.read_text(encoding="utf-8")
    assert curves(run_folder(0))["loss/batch"] == curves(run_folder(1))["loss/batch"]
    for name, weight in saved_weights(0).items():
        assert torch.equal(weight, saved_weights(1)[name]), name


def test_failed_compilation_without_the_random_state_is_detected(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(EVERY, DROPOUT)
    monkeypatch.setattr(torch, "compile", broken_compiler("backward"))
    monkeypatch.setattr("nanogpt.training.compiled.isolate_rng", nullcontext)  # a fault
    fit(EVERY, DROPOUT, "--compile=true")
    assert curves(run_folder(0))["loss/batch"] != curves(run_folder(1))["loss/batch"]


@pytest.mark.parametrize("plain_works", [True, False])
def test_failed_recording_of_graphs_leaves_a_compiled_or_an_uncompiled_loss(
    plain_works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modes = []

    def compile(loss: Loss, mode: str, **_: Any) -> Loss:
        modes.append(mode)
        if mode == "reduce-overhead" or not plain_works:
            raise RuntimeError(f"skipping cudagraphs in {mode}")
        return lambda *args: loss(*args) + 1

    monkeypatch.setattr(torch, "compile", compile)
    loss = CompiledLoss(lambda net, *_: net.weight.sum(), graphs=True, folder=Path())
    net, ids = nn.Linear(1, 1), torch.zeros(2, 3)
    expected = net.weight.item() + plain_works
    assert [loss(net, ids, ids).item() for _ in range(2)] == pytest.approx([expected] * 2)
    assert modes == ["reduce-overhead", "default"]
    first, *others = capsys.readouterr().err.splitlines()
    assert first == (
        "notice: recording CUDA graphs failed, training continues without them: RuntimeError: "
        "skipping cudagraphs in reduce-overhead (the whole error is in compile_error.txt)"
    )
    assert ["torch.compile failed" in line for line in others] == [True] * (not plain_works)
    errors = Path("compile_error.txt").read_text(encoding="utf-8")
    assert errors.count("Traceback") == 1 + (not plain_works)


@pytest.mark.usefixtures("compilable")
def test_graph_that_is_skipped_raises_in_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter as skip

    def loss(net: nn.Module, *_: Tensor) -> Tensor:
        skip("a reason")
        return net.weight.sum()

    skip("outside the trial it is only logged")
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiled = CompiledLoss(loss, graphs=True)
    compiled(nn.Linear(1, 1), torch.zeros(1), torch.zeros(1))
    assert compiled.run is loss
    assert not compiled.graphs


@pytest.mark.usefixtures("compilable")
def test_kernels_are_kept_in_the_cache_folder_of_the_user(
    fit: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored after the test
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    assert fit("--compile=true", "--trainer.max_steps=1").code == 0
    assert any((tmp_path / "cache" / "compiled").rglob("*.so"))


# the setting

H100, SLOW = 3.35e12, 0.3e12  # bytes per second
BIG = {"n_layer": 6, "n_head": 6, "n_embd": 384}


@pytest.mark.parametrize(
    ("choice", "model", "device", "settings", "compiled", "graphs"),
    [
        ("auto", BIG, "cuda", {}, True, True),
        ("auto", BIG, "cuda", {"max_steps": -1}, True, True),
        ("auto", BIG, "cuda", {"accumulate_grad_batches": 2}, True, False),
        ("auto", BIG, "cuda", {"world_size": 2}, True, False),
        ("auto", BIG, "cuda", {"max_steps": 300}, False, False),
        ("auto", BIG, "cuda", {"max_steps": 600, "bandwidth": SLOW}, True, True),
        ("auto", BIG | {"n_embd": 48}, "cuda", {}, False, False),
        ("auto", {"architecture": "bigram"}, "cuda", {}, False, False),
        ("auto", {"architecture": "bigram"}, "cuda", {"max_steps": -1}, False, False),
        ("auto", BIG, "cpu", {}, False, False),
        ("auto", BIG, "mps", {}, False, False),
        (True, {"architecture": "bigram"}, "cuda", {"max_steps": 1}, True, True),
        (True, BIG, "cpu", {}, True, False),
        (False, BIG, "cuda", {}, False, False),
    ],
)
def test_compile_choice(
    choice: Any,
    model: dict[str, Any],
    device: str,
    settings: dict[str, Any],
    compiled: bool,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = dict(settings)
    bandwidth = settings.pop("bandwidth", H100)
    monkeypatch.setattr("nanogpt.training.compiled.memory_bandwidth", lambda _: bandwidth)
    trainer: Any = SimpleNamespace(**{
        "strategy": SimpleNamespace(root_device=torch.device(device)),
        "max_steps": 5000, "accumulate_grad_batches": 1, "world_size": 1, **settings,
    })  # fmt: skip
    data: Any = SimpleNamespace(batch_size=64, block_size=256)
    plan = plan_compilation(
        choice, LanguageModel(**{"architecture": "gpt", **model}), data, trainer
    )
    assert (plan.compiled, plan.graphs) == (compiled, graphs)
    assert plan.reason.startswith("compiled" if compiled else "not compiled")
    assert ("CUDA graphs" in plan.reason) == (compiled and device == "cuda")


def test_invalid_compile_choice_gives_a_one_line_error(fit: Run) -> None:
    outcome = fit("--compile=ture")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "compile cannot be 'ture'" in outcome.err


# on a GPU; these have never run

GPU = ("--trainer.accelerator=gpu", "--compile=true", "--model.dropout=0.2", "--model.n_layer=2")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_a_gpu
def test_no_synchronization_with_the_gpu_between_evaluations(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(self: LanguageModel, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.global_step % 10 else "default")

    def allow(self: LanguageModel) -> None:
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(LanguageModel, "on_train_batch_start", forbid)
    monkeypatch.setattr(LanguageModel, "on_validation_start", allow)
    options = ("--trainer.log_every_n_steps=100", "--trainer.val_check_interval=10")
    for precision in ("32-true", "bf16-mixed"):
        try:
            outcome = fit(
                *GPU, *options, "--trainer.max_steps=30", f"--trainer.precision={precision}"
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (outcome.code, outcome.err) == (0, "")


@needs_a_gpu
@pytest.mark.parametrize("micro_batches", [1, 2])  # with and without CUDA graphs
def test_compiled_run_on_a_gpu_resumes(
    fit: Run, monkeypatch: pytest.MonkeyPatch, micro_batches: int
) -> None:
    options = [*GPU, EVERY, f"--trainer.accumulate_grad_batches={micro_batches}"]
    options += ["--trainer.max_steps=12", "--trainer.gradient_clip_val=1"]
    options += ["--model.learning_rate=0.01"]
    assert fit(*options).code == 0
    original = RunState.on_train_batch_end

    def interrupt(self: RunState, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 7:
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "on_train_batch_end", interrupt)
        assert fit(*options).code == 143
    done = fit("--ckpt_path", str(run_folder(1)), *options)
    assert (done.code, done.err) == (0, "")
    plain, found = curves(run_folder(0))["loss/batch"], curves(run_folder(1))["loss/batch"]
    assert found == pytest.approx(plain, abs=1e-3)  # the order of additions on a GPU varies


@needs_a_gpu
def test_compiled_run_on_a_gpu_equals_an_uncompiled_one_without_dropout(fit: Run) -> None:
    for choice in ("true", "false"):
        outcome = fit(*GPU, EVERY, "--model.dropout=0", f"--compile={choice}")
        assert (outcome.code, outcome.err) == (0, "")
    plain, found = curves(run_folder(1))["loss/batch"], curves(run_folder(0))["loss/batch"]
    assert found == pytest.approx(plain, abs=1e-3)
