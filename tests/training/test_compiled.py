"""Compiled runs equal uncompiled ones, bit for bit if compilation fails."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.models import Model, build_model
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.compiled import CompiledLoss, compiled_loss
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
    assert outcome.err == (
        "notice: torch.compile failed, training continues uncompiled: RuntimeError: no Triton\n"
    )
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


# the setting


def trainer(device: str, **settings: int) -> Any:
    defaults = {"max_steps": 5000, "accumulate_grad_batches": 1, "world_size": 1}
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, **{**defaults, **settings})


@pytest.mark.parametrize(
    ("choice", "architecture", "device", "settings", "compiled", "graphs"),
    [
        ("auto", "gpt", "cuda", {}, True, True),
        ("auto", "modern", "cuda", {"max_steps": -1}, True, True),
        ("auto", "gpt", "cuda", {"accumulate_grad_batches": 2}, True, False),
        ("auto", "gpt", "cuda", {"world_size": 2}, True, False),
        ("auto", "gpt", "cuda", {"max_steps": 600}, False, False),
        ("auto", "ablated_gpt", "cuda", {}, False, False),
        ("auto", "bigram", "cuda", {}, False, False),
        ("auto", "gpt", "cpu", {}, False, False),
        ("auto", "gpt", "mps", {}, False, False),
        (True, "bigram", "cuda", {"max_steps": 1}, True, True),
        (True, "gpt", "cpu", {}, True, False),
        (False, "gpt", "cuda", {}, False, False),
    ],
)
def test_compile_choice(
    choice: Any, architecture: str, device: str, settings: Any, compiled: bool, graphs: bool
) -> None:
    model, where = LanguageModel(architecture), trainer(device, **settings)
    loss = compiled_loss(next_character_loss, choice, model, where)
    assert isinstance(loss, CompiledLoss) == compiled
    assert getattr(loss, "graphs", False) == graphs


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
