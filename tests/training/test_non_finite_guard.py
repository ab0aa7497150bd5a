"""A sick run is noticed, says what made it sick, and spoils no checkpoint."""

import math
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.text.batches import Draw, batch_offsets
from nanogpt.training import health, module
from nanogpt.training.callbacks import Recorder
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Run
from tests.training.oracles import kept_weights, run_folder

KEPT = run_folder() / "checkpoints" / "last.ckpt"
EVERY_OTHER = ("--trainer.max_steps=9", "--trainer.val_check_interval=2")


def offsets(step: int) -> str:
    """The offsets of the windows of a step, from 1, as a line shows them."""
    return ", ".join(map(str, batch_offsets(Draw(1337, 4, 4500 - 8), step - 1).tolist()))


@pytest.fixture
def spoil_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of the seventh micro-batch infinite."""
    real, calls = module.mean_loss, [0]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls[0] += torch.is_grad_enabled()
        return real(logits, targets) * (math.inf if calls[0] == 7 else 1)

    monkeypatch.setattr(module, "mean_loss", loss)


def check(error: str, what: str, step: int) -> None:
    assert error.count("\n") == 1
    assert error.startswith(f"error: the {what} of step {step} is not finite")
    assert f"begin at {offsets(step)} of the train split" in error
    assert f"the last good checkpoint is {KEPT};" in error
    assert all(weight.isfinite().all() for weight in kept_weights().values())


@pytest.mark.usefixtures("spoil_loss")
@pytest.mark.parametrize(("parts", "step"), [(1, 7), (2, 4)])
def test_a_loss_that_is_not_finite_stops_the_run(fit: Run, parts: int, step: int) -> None:
    outcome = fit(*EVERY_OTHER, f"--trainer.accumulate_grad_batches={parts}")
    assert outcome.code == 2
    check(outcome.err, "loss", step)


def test_a_gradient_that_is_not_finite_stops_the_run(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: LanguageModel, *_: Any) -> None:
        if self.global_step == 4:
            next(self.parameters()).grad.fill_(math.nan)

    monkeypatch.setattr(LanguageModel, "on_before_optimizer_step", spoil)
    outcome = fit(*EVERY_OTHER)
    assert outcome.code == 2
    check(outcome.err, "gradient", 5)


@pytest.mark.usefixtures("spoil_loss")
@pytest.mark.parametrize(
    ("interval", "log_every"), [(100, 9), (8, 100)], ids=["when logging", "when evaluating"]
)
def test_a_gpu_is_asked_now_and_then_and_still_names_the_step(
    fit: Run, monkeypatch: pytest.MonkeyPatch, interval: int, log_every: int
) -> None:
    monkeypatch.setattr(health, "waits_for_nothing", lambda _: False)
    fit("--trainer.max_steps=4")
    outcome = fit(
        *("--trainer.max_steps=12", f"--trainer.val_check_interval={interval}"),
        f"--trainer.log_every_n_steps={log_every}",
    )
    # the first run had four of the seven micro-batches
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "of step 3 is not finite" in outcome.err
    assert offsets(3) in outcome.err


def test_a_model_that_is_not_finite_is_never_saved(
    fit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in the step that a signal ends: no loss and no evaluation comes after it
    real = Recorder.on_train_batch_end

    def spoil(self: Recorder, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            state = next(iter(trainer.optimizers[0].state.values()))
            state["exp_avg_sq"].fill_(math.inf)
            signal.raise_signal(signal.SIGTERM)
        real(self, trainer, *args)

    monkeypatch.setattr(Recorder, "on_train_batch_end", spoil)
    outcome = fit(*EVERY_OTHER)
    assert outcome.code == 2
    check(outcome.err, "result", 5)
    assert torch.load(KEPT, weights_only=True)["global_step"] == 4
