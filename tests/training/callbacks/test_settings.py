"""Each callback of a run can be changed, replaced or left out by its name in the config."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from nanogpt.training.callbacks.run_state import RunState
from nanogpt.training.trainer_parts import DEFAULT_CALLBACKS
from tests.command_lines import Run
from tests.training.oracles import curves, events, printed_losses, run_folder

FOLDER = run_folder() / "checkpoints"


class Marker(L.Callback):
    """Leaves a file when training ends."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Path("marker").touch()


def step_of(name: str) -> int:
    step: int = torch.load(FOLDER / f"{name}.ckpt", weights_only=True)["global_step"]
    return step


def test_config_names_every_callback(fit: Run) -> None:
    fit("--trainer.max_steps=1")
    config = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert config["callbacks"].keys() == DEFAULT_CALLBACKS.keys()


@pytest.mark.parametrize("name", DEFAULT_CALLBACKS)
def test_any_callback_can_be_left_out(fit: Run, name: str) -> None:
    outcome = fit(f"--callbacks.{name}=null")
    assert (outcome.code, outcome.err) == (0, "")
    assert list(printed_losses(outcome.out)) == ([] if name == "evaluation" else [0, 4, 6])
    saved = {path.stem for path in FOLDER.iterdir()}
    assert saved == {"best", "last"} - {name.removesuffix("_checkpoint")}
    found = curves(run_folder())
    assert ("characters_per_second" in found) == (name != "throughput")
    assert ("loss/best_val" in found) == (name != "evaluation")
    tags = events(run_folder()).Tags()["tensors"]
    assert ("sample/text_summary" in tags) == (name != "samples")


def test_callback_can_be_replaced_in_a_config(fit: Run) -> None:
    Path("more.yaml").write_text(
        f"callbacks:\n  samples: {Marker.__module__}.Marker\n  last_checkpoint:\n"
        "    class_path: nanogpt.training.callbacks.LastCheckpoint\n"
        "    init_args: {dirpath: elsewhere}\n"
    )
    outcome = fit("--config=more.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert Path("marker").exists()
    assert Path("elsewhere/last.ckpt").is_file()
    assert {path.stem for path in FOLDER.iterdir()} == {"best"}


def test_callback_of_the_user_replaces_the_default_of_its_class(fit: Run) -> None:
    option = "--trainer.callbacks=nanogpt.training.callbacks.SampleWriter"
    assert fit(option, "--trainer.callbacks.length=7").code == 0
    recorded = events(run_folder()).Tensors("sample/text_summary")
    assert [event.step for event in recorded] == [0, 4, 6]


@pytest.mark.parametrize(("minutes", "step"), [("5", 4), ("0", 5), ("null", 4)])
def test_last_checkpoint_is_saved_every_few_minutes(
    fit: Run, monkeypatch: pytest.MonkeyPatch, minutes: str, step: int
) -> None:
    def crash(self: RunState, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 6:
            raise ZeroDivisionError

    monkeypatch.setattr(RunState, "on_train_batch_end", crash)
    with pytest.raises(ZeroDivisionError):
        fit(f"--callbacks.last_checkpoint.minutes={minutes}")
    assert step_of("last") == step


def test_moved_run_keeps_its_best_checkpoint(fit: Run, run: Run) -> None:
    fit("--trainer.max_steps=40", "--model.warmup_steps=0", "--model.learning_rate=0.01")
    best = (FOLDER / "best.ckpt").read_bytes()
    run_folder().rename("moved")
    diverging = ("--model.learning_rate=3", "--model.schedule=constant")
    outcome = run("fit", "--ckpt_path=moved", "--trainer.max_steps=42", *diverging)
    assert outcome.code == 0, outcome.err
    assert "in moved, resumed at step 40" in outcome.out
    assert Path("moved/checkpoints/best.ckpt").read_bytes() == best
    assert "best.safetensors:" in outcome.out
    assert "more text    python cli.py predict --ckpt_path moved" in outcome.out
