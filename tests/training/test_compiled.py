"""A compiled run is the run that it would have been; where compiling fails, to the bit."""

import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nanogpt.models import GPT, ModernGPT, Shifted
from nanogpt.training.callbacks import Recorder
from nanogpt.training.compiled import CompiledLoss, compiled_loss
from nanogpt.training.lightning_module import LanguageModel, next_character_loss
from tests.command_lines import Run, is_one_line
from tests.training.oracles import curves, distance, kept_weights, run_folder

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
EVERY = "--trainer.log_every_n_steps=1"
DROPOUT = "--model.dropout=0.3"
SIZES = {"block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 12}


@pytest.fixture
def compilable() -> None:
    """Skip where there is no C++ compiler that PyTorch's own compiler can use."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        pytest.skip(f"no C++ compiler: {error}")


def weights(version: int) -> nn.Module:
    net = GPT(65, block_size=8, n_layer=1, n_head=2, n_embd=8)
    net.load_state_dict(kept_weights(version))
    return net


# what comes out


@pytest.mark.usefixtures("compilable")
def test_what_is_learnt_from_teachers_is_compiled_too(fit: Run) -> None:
    fit()
    taught = (EVERY, f"--teachers=[{run_folder(0)}]", "--trainer.max_steps=3")
    for choice in ("false", "true"):
        outcome = fit(*taught, f"--compile={choice}")
        assert (outcome.code, outcome.err) == (0, "")
    plain, compiled = (curves(run_folder(n))["loss/batch"] for n in (1, 2))
    assert compiled == pytest.approx(plain, abs=1e-5)
    fit(EVERY, "--trainer.max_steps=3")
    assert plain != pytest.approx(curves(run_folder(3))["loss/batch"], abs=1e-3)


@pytest.mark.usefixtures("compilable")
def test_a_compiled_run_is_the_same_up_to_rounding_and_goes_on_uncompiled(fit: Run) -> None:
    options = (EVERY, "--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.1")
    assert fit(*options).code == 0
    compiled = fit(*options, "--compile=true", "--trainer.max_steps=3")
    assert (compiled.code, compiled.err) == (0, "")
    assert yaml.safe_load((run_folder(1) / "config.yaml").read_text())["compile"] is True
    more = ("--compile=false", "--trainer.max_steps=6", "--model.schedule=cosine")
    done = fit("--ckpt_path", str(run_folder(1)), *options, *more)
    assert "notice: compile False instead of the run's True\n" in done.err
    for name in ("loss/batch", "loss/val"):
        plain, found = curves(run_folder(0))[name], curves(run_folder(1))[name]
        assert {step: found[step] for step in plain} == pytest.approx(plain, abs=1e-5), name
    assert list(kept_weights(0)) == list(kept_weights(1))
    assert distance(weights(0), kept_weights(1)) < 1e-5


@pytest.mark.parametrize("architecture", [GPT, ModernGPT, Shifted])
def test_what_a_gpu_runs_is_traced_in_one_piece(architecture: type[GPT | ModernGPT]) -> None:
    # no CUDA here: "meta" stands for a device that is not a CPU, and takes the same branches
    with torch.device("meta"):
        net, cut = architecture(65, **SIZES, dropout=0.2), torch.zeros(4, 8, dtype=torch.long)
    torch._dynamo.reset()
    graphs: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    run = torch.compile(next_character_loss, backend=keep, fullgraph=True)
    assert run(net, cut[:, :-1], cut[:, 1:]).shape == ()
    (graph,) = graphs
    operators = [node.target for node in graph.graph.nodes]
    assert operators.count(nn.functional.scaled_dot_product_attention) == SIZES["n_layer"]
    assert operators.count(nn.functional.dropout) == 2 * SIZES["n_layer"]
    fixed = [n.meta["tensor_dict"] for n in graph.graph.nodes if n.op == "placeholder"]
    fixed = [place for place in fixed if place.get("_dynamo_static_input_type")]
    assert len(fixed) == len(list(net.parameters()))  # CUDA graphs copy none of them


# where it cannot be


def broken(stage: str) -> Callable[..., Loss]:
    """Return a compiler that fails at a stage, having drawn random numbers before."""

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

        return fail() or run if stage == "at once" else run

    return compile


@pytest.mark.parametrize("stage", ["at once", "forward", "backward", "replay"])
def test_a_run_that_cannot_be_compiled_is_one_that_never_was(
    fit: Run, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    parts = "--trainer.accumulate_grad_batches=2"
    assert fit(EVERY, DROPOUT, parts).code == 0
    monkeypatch.setattr(torch, "compile", broken(stage))
    outcome = fit(EVERY, DROPOUT, parts, "--compile=true")
    assert outcome.code == 0
    assert outcome.err == (
        "notice: training goes on uncompiled, since compiling failed: RuntimeError: no Triton\n"
    )
    assert curves(run_folder(0))["loss/batch"] == curves(run_folder(1))["loss/batch"]
    for name, weight in kept_weights(0).items():
        assert torch.equal(weight, kept_weights(1)[name]), name


def test_the_random_state_is_what_makes_it_so(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(EVERY, DROPOUT)
    monkeypatch.setattr(torch, "compile", broken("backward"))
    monkeypatch.setattr("nanogpt.training.compiled.set_random_state", lambda *_: None)  # planted
    fit(EVERY, DROPOUT, "--compile=true")
    assert curves(run_folder(0))["loss/batch"] != curves(run_folder(1))["loss/batch"]


# the setting


def trainer(device: str, **settings: int) -> Any:
    usual = {"max_steps": 5000, "accumulate_grad_batches": 1, "world_size": 1}
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, **{**usual, **settings})


@pytest.mark.parametrize(
    ("choice", "architecture", "device", "settings", "compiled", "graphs"),
    [
        ("auto", "gpt", "cuda", {}, True, True),
        ("auto", "modern", "cuda", {"max_steps": -1}, True, True),
        ("auto", "shifted", "cuda", {}, True, True),
        ("auto", "gpt", "cuda", {"accumulate_grad_batches": 2}, True, False),
        ("auto", "gpt", "cuda", {"world_size": 2}, True, False),
        ("auto", "gpt", "cuda", {"max_steps": 600}, False, False),
        ("auto", "rung", "cuda", {}, False, False),
        ("auto", "bigram", "cuda", {}, False, False),
        ("auto", "gpt", "cpu", {}, False, False),
        ("auto", "gpt", "mps", {}, False, False),
        (True, "bigram", "cuda", {"max_steps": 1}, True, True),
        (True, "gpt", "cpu", {}, True, False),
        (False, "gpt", "cuda", {}, False, False),
    ],
)
def test_what_is_compiled(
    choice: Any, architecture: Any, device: str, settings: Any, compiled: bool, graphs: bool
) -> None:
    model, where = LanguageModel(architecture), trainer(device, **settings)
    loss = compiled_loss(next_character_loss, choice, model, where)
    assert isinstance(loss, CompiledLoss) == compiled
    assert getattr(loss, "graphs", False) == graphs


def test_a_typo_is_one_line(fit: Run) -> None:
    outcome = fit("--compile=ture")
    assert outcome.code == 2
    assert is_one_line(outcome.err)
    assert "compile cannot be 'ture'" in outcome.err


# on a GPU; never run yet

GPU = ("--trainer.accelerator=gpu", "--compile=true", "--model.dropout=0.2", "--model.n_layer=2")
needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_a_gpu
def test_nothing_waits_for_the_gpu_between_evaluations(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbid(self: LanguageModel, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("error" if self.global_step % 10 else "default")

    def allow(self: LanguageModel) -> None:
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(LanguageModel, "on_train_batch_start", forbid)
    monkeypatch.setattr(LanguageModel, "on_validation_start", allow)
    never = ("--trainer.log_every_n_steps=100", "--trainer.val_check_interval=10")
    for precision in ("32-true", "bf16-mixed"):
        try:
            outcome = fit(
                *GPU, *never, "--trainer.max_steps=30", f"--trainer.precision={precision}"
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert (outcome.code, outcome.err) == (0, "")


@needs_a_gpu
@pytest.mark.parametrize("parts", [1, 2])  # with CUDA graphs, and without
def test_a_compiled_run_on_a_gpu_goes_on_as_if_it_had_not_been_interrupted(
    fit: Run, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    options = (*GPU, EVERY, f"--trainer.accumulate_grad_batches={parts}", "--trainer.max_steps=12")
    options = (*options, "--trainer.gradient_clip_val=1", "--model.learning_rate=0.01")
    assert fit(*options).code == 0
    real = Recorder.on_train_batch_end

    def interrupt(self: Recorder, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 7:
            signal.raise_signal(signal.SIGTERM)
        real(self, trainer, *args)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_train_batch_end", interrupt)
        assert fit(*options).code == 143
    done = fit("--ckpt_path", str(run_folder(1)), *options)
    assert (done.code, done.err) == (0, "")
    plain, found = curves(run_folder(0))["loss/batch"], curves(run_folder(1))["loss/batch"]
    assert found == pytest.approx(plain, abs=1e-3)  # a GPU does not add in the same order twice


@needs_a_gpu
def test_without_dropout_a_compiled_run_on_a_gpu_is_the_same_up_to_rounding(fit: Run) -> None:
    for choice in ("true", "false"):
        outcome = fit(*GPU, EVERY, "--model.dropout=0", f"--compile={choice}")
        assert (outcome.code, outcome.err) == (0, "")
    plain, found = curves(run_folder(1))["loss/batch"], curves(run_folder(0))["loss/batch"]
    assert found == pytest.approx(plain, abs=1e-3)
