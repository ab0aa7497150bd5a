"""Mixed precision as on a GPU, forced on a CPU: every config trains as in float32."""

import signal
from typing import Any

import pytest
import torch
from torch import nn

from nanogpt.generation.generate import sample_text
from nanogpt.training.callbacks.run_state import RunState
from tests.command_lines import CONFIGS, Run
from tests.training.oracles import curves, run_folder

# Lightning refuses fp16 with a gradient scaler on a CPU unless it is given as a plugin
FP16 = (
    "--trainer.precision=null",
    '--trainer.plugins=[{"class_path": "lightning.pytorch.plugins.MixedPrecision", "init_args": '
    '{"precision": "16-mixed", "device": "cpu"}}]',
)
FP32, BF16 = ("--trainer.precision=32-true",), ("--trainer.precision=bf16-mixed",)
CLIP, ACCUMULATE = "--trainer.gradient_clip_val=1", "--trainer.accumulate_grad_batches=2"
OPTIONS = {
    "clipping": (CLIP,),
    "clipping values": (CLIP, "--trainer.gradient_clip_algorithm=value"),
    "accumulation": (ACCUMULATE,),
    "both": (CLIP, ACCUMULATE),
    "averaged weights": ("--trainer.callbacks=EMAWeightAveraging",),
}
SMALL = (
    *("--data.corpus=text.txt", "--data.batch_size=4", "--model.block_size=8", "--card=false"),
    *("--trainer.accelerator=cpu", "--trainer.max_steps=6", "--trainer.val_check_interval=4"),
    "--trainer.log_every_n_steps=1",
)
LAYERS = ("--model.n_layer=2", "--model.n_head=2", "--model.n_embd=16")


@pytest.fixture(autouse=True)
def fast_bf16(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Pretend that this CPU computes bf16 fast, and write the text."""
    for module in ("hardware_settings", "optimizer"):
        monkeypatch.setattr(f"nanogpt.training.{module}.fast_bf16", lambda device: True)


def losses(run: Run, config: str, version: int, *options: str) -> dict[str, dict[int, float]]:
    """Train a small model and return its curves."""
    layers = () if config == "bigram" else LAYERS
    outcome = run("fit", "--config", str(CONFIGS / f"{config}.yaml"), *SMALL, *layers, *options)
    assert (outcome.code, outcome.err) == (0, "")
    found = curves(run_folder(version))
    return {name: found[name] for name in ("loss/batch", "loss/val")}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("config", ["gpt10m", "gpt10m_fast", "quickstart", "bigram"])
def test_run_in_mixed_precision_equals_one_in_float32(
    run: Run, config: str, options: tuple[str, ...]
) -> None:
    expected = losses(run, config, 0, *options, *FP32)
    for version, precision in enumerate((BF16, FP16), 1):
        found = losses(run, config, version, *options, *precision)
        for name, curve in expected.items():
            assert found[name] == pytest.approx(curve, abs=0.02), (name, precision)
        assert found != expected or config == "bigram"  # no matrix products


@pytest.mark.parametrize(("precision", "dtype"), [(BF16, "bfloat16"), (FP32, "float32")])
def test_sample_of_an_evaluation_is_drawn_in_the_precision_of_the_run(
    run: Run, monkeypatch: pytest.MonkeyPatch, precision: tuple[str, ...], dtype: str
) -> None:
    sampled: list[Any] = []

    def sample(net: nn.Module, *args: Any, **settings: Any) -> str:
        sampled.append(next(net.parameters()))
        return sample_text(net, *args, **settings)

    monkeypatch.setattr("nanogpt.training.callbacks.samples.sample_text", sample)
    losses(run, "quickstart", 0, *precision)
    assert [str(weight.dtype) for weight in sampled] == [f"torch.{dtype}"] * 3
    saved = torch.load(run_folder() / "checkpoints" / "last.ckpt", weights_only=True)
    assert {weight.dtype for weight in saved["state_dict"].values()} == {torch.float32}


@pytest.mark.parametrize("precision", [BF16, FP16], ids=["bf16", "fp16"])
def test_run_in_mixed_precision_resumes_exactly(
    run: Run, monkeypatch: pytest.MonkeyPatch, precision: tuple[str, ...]
) -> None:
    options = (*precision, CLIP, ACCUMULATE)
    expected = losses(run, "gpt10m_fast", 0, *options)
    original = RunState.on_train_batch_end

    def interrupt(self: RunState, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "on_train_batch_end", interrupt)
        assert run("fit", "--config", str(CONFIGS / "gpt10m_fast.yaml"), *SMALL, *LAYERS,
                   *options).code == 143  # fmt: skip
    outcome = run("fit", "--ckpt_path", str(run_folder(1)))
    assert (outcome.code, outcome.err) == (0, "")
    found = curves(run_folder(1))
    assert {name: found[name] for name in expected} == expected
