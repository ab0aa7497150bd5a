"""Non-finite values stop a run, name the step and its batch, and are not saved."""

import math
import signal
from typing import Any

import pytest
import torch
from torch import Tensor

from nanogpt.text.batches import Draw, batch_offsets
from nanogpt.training import losses
from nanogpt.training.callbacks import non_finite_guard
from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import Run
from tests.training.oracles import run_folder, saved_weights

LAST = run_folder() / "checkpoints" / "last.ckpt"
EVERY_SECOND_STEP = ("--trainer.max_steps=9", "--trainer.val_check_interval=2")


def offsets(step: int) -> str:
    """Return the offsets of the windows of a step, counted from 1, as an error lists them."""
    return ", ".join(map(str, batch_offsets(Draw(1337, 4, 4500 - 8), step - 1).tolist()))


@pytest.fixture
def infinite_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of the seventh micro-batch infinite."""
    cross_entropy_loss, calls = losses.cross_entropy_loss, [0]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls[0] += torch.is_grad_enabled()
        return cross_entropy_loss(logits, targets) * (math.inf if calls[0] == 7 else 1)

    monkeypatch.setattr(losses, "cross_entropy_loss", loss)


def check(error: str, what: str, step: int) -> None:
    assert error.count("\n") == 1
    assert error.startswith(f"error: the {what} of step {step} is not finite")
    assert f"the last good checkpoint is {LAST}" in error
    if what != "result":
        assert f"start at {offsets(step)} of the train split" in error
    assert all(weight.isfinite().all() for weight in saved_weights().values())


@pytest.mark.usefixtures("infinite_loss")
@pytest.mark.parametrize(("micro_batches", "step"), [(1, 7), (2, 4)])
def test_non_finite_loss_stops_the_run(fit: Run, micro_batches: int, step: int) -> None:
    outcome = fit(*EVERY_SECOND_STEP, f"--trainer.accumulate_grad_batches={micro_batches}")
    assert outcome.code == 2
    check(outcome.err, "loss", step)


def test_non_finite_gradient_stops_the_run(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def set_gradient(self: LanguageModel, *_: Any) -> None:
        if self.global_step == 4:
            next(self.parameters()).grad.fill_(math.nan)

    monkeypatch.setattr(LanguageModel, "on_before_optimizer_step", set_gradient)
    outcome = fit(*EVERY_SECOND_STEP)
    assert outcome.code == 2
    check(outcome.err, "gradient", 5)


@pytest.mark.usefixtures("infinite_loss")
@pytest.mark.parametrize(
    ("interval", "log_every"), [(100, 9), (8, 100)], ids=["when logging", "when evaluating"]
)
def test_deferred_check_on_a_gpu_names_the_step(
    fit: Run, monkeypatch: pytest.MonkeyPatch, interval: int, log_every: int
) -> None:
    monkeypatch.setattr(non_finite_guard, "is_on_cpu", lambda _: False)
    fit("--trainer.max_steps=4")
    outcome = fit(
        *("--trainer.max_steps=12", f"--trainer.val_check_interval={interval}"),
        f"--trainer.log_every_n_steps={log_every}",
    )
    # the first run took four of the seven micro-batches
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "of step 3 is not finite" in outcome.err
    assert offsets(3) in outcome.err


def test_non_finite_optimizer_state_is_not_saved(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # after the step at which a signal stops the run, no loss is computed
    original = RunState.on_train_batch_end

    def set_state(self: RunState, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            state = next(iter(trainer.optimizers[0].state.values()))
            state["exp_avg_sq"].fill_(math.inf)
            signal.raise_signal(signal.SIGTERM)
        original(self, trainer, *args)

    monkeypatch.setattr(RunState, "on_train_batch_end", set_state)
    outcome = fit(*EVERY_SECOND_STEP)
    assert outcome.code == 2
    check(outcome.err, "result", 5)
    assert torch.load(LAST, weights_only=True)["global_step"] == 4
