"""Training from Python, as a user of Lightning would write it."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from nanogpt import attention_maps, generate
from nanogpt.errors import UserError
from nanogpt.models import count_parameters
from nanogpt.training.callbacks import (
    BestCheckpoint,
    EvaluationReport,
    LastCheckpoint,
    NonFiniteGuard,
    SampleWriter,
    Throughput,
)
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel

SMALL = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory",
        "The number of training batches",
        "You defined a `validation_step` but have no `val_dataloader`",
        "Be aware that when using `ckpt_path`",
    )
]


def model(**settings: Any) -> LanguageModel:
    return LanguageModel("gpt", learning_rate=0.01, **{**SMALL, **settings})


def data(text: str = "text.txt", **settings: Any) -> CharDataModule:
    return CharDataModule(text, **{"block_size": 8, "batch_size": 4, **settings})


@pytest.fixture
def trainer(text: str) -> L.Trainer:
    return L.Trainer(max_steps=5, accelerator="cpu", enable_progress_bar=False)


def test_losses_are_among_the_metrics_after_a_fit(trainer: L.Trainer) -> None:
    trainer.fit(model(), data())
    metrics = trainer.callback_metrics
    assert {"loss/train", "loss/val", "loss/batch", "perplexity/val"} <= metrics.keys()
    assert 3 < metrics["loss/val"] < 5
    assert trainer.global_step == 5
    assert Path("lightning_logs/version_0/hparams.yaml").is_file()


def test_validate_returns_the_losses(trainer: L.Trainer) -> None:
    network = model()
    trainer.fit(network, data())
    fitted = trainer.callback_metrics["loss/val"].item()
    losses = trainer.validate(network, data(), verbose=False)
    assert losses[0]["loss/val"] == pytest.approx(fitted)
    assert "step" not in losses[0]


def test_fit_continues_after_validate(text: str) -> None:
    network, texts = model(), data()
    for steps in (3, 6):
        trainer = L.Trainer(max_steps=steps, accelerator="cpu", enable_progress_bar=False)
        trainer.fit(network, texts)
        trainer.validate(network, texts, verbose=False)
        assert trainer.global_step == steps


def test_one_trainer_fits_validates_and_fits(trainer: L.Trainer) -> None:
    network, texts = model(), data()
    trainer.fit(network, texts)
    before = trainer.validate(network, texts, verbose=False)[0]["loss/val"]
    trainer.fit_loop.epoch_loop.max_steps = 40
    trainer.fit(network, texts)
    assert trainer.global_step == 40
    assert trainer.validate(network, texts, verbose=False)[0]["loss/val"] < before


def test_parameters_can_be_counted_before_a_fit(text: str) -> None:
    network = model(vocabulary=data().vocabulary)
    assert count_parameters(network.net) == sum(p.numel() for p in network.parameters()) == 2033


def test_loaders_without_a_data_module(trainer: L.Trainer) -> None:
    ids = torch.randint(3, (40, 9), generator=torch.Generator().manual_seed(1))
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4
    )
    trainer.fit(model(vocabulary="abc"), loader, loader)
    assert 0.5 < trainer.callback_metrics["loss/val"] < 2
    assert "loss/train" not in trainer.callback_metrics
    with pytest.raises(UserError, match="no vocabulary: create it with"):
        L.Trainer(max_steps=1, accelerator="cpu", logger=False).fit(model(), loader)


def test_callbacks_work_with_one_val_loader(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    ids = torch.arange(9).repeat(4, 1) % 3
    loader = DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)
    callbacks: list[Any] = [EvaluationReport(), SampleWriter(5), NonFiniteGuard(), Throughput()]
    trainer = L.Trainer(
        max_steps=3, accelerator="cpu", enable_progress_bar=False, callbacks=callbacks
    )
    trainer.fit(model(vocabulary="abc"), loader, loader)
    assert re.search(r"^step 3: val loss \d", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("steps", [{"max_epochs": 5}, {"max_steps": 5}])
def test_schedule_ends_at_the_last_step(text: str, steps: dict[str, int]) -> None:
    ids = torch.arange(9).repeat(4, 1) % 3
    loader = DataLoader(TensorDataset(ids[:, :-1], ids[:, 1:]), batch_size=4)
    trainer = L.Trainer(**steps, accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.fit(model(vocabulary="abc", schedule="linear"), loader)
    assert trainer.global_step == 5
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)


def test_schedule_without_a_last_step_is_refused(text: str) -> None:
    trainer = L.Trainer(max_time="00:00:00:05", accelerator="cpu", logger=False, max_epochs=-1)
    with pytest.raises(UserError, match=r"the schedule linear needs Trainer\(max_steps=N\)"):
        trainer.fit(model(schedule="linear"), data())


def test_another_text_is_an_error(trainer: L.Trainer) -> None:
    Path("other.txt").write_text("xyz" * 1000, encoding="utf-8")
    network = model()
    trainer.fit(network, data())
    for method in (trainer.fit, trainer.validate):
        with pytest.raises(UserError, match="but the text has 'xyz': use the text"):
            method(network, datamodule=data("other.txt"))


def test_a_network_of_another_size_is_an_error(trainer: L.Trainer) -> None:
    with pytest.raises(UserError, match="windows of 16 characters"):
        trainer.fit(model(), data(block_size=16))


def test_epochs_are_refused(text: str) -> None:
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"counted in optimizer steps.*Trainer\(max_steps=N\)"):
        trainer.fit(model(), data())


def test_trained_module_generates_and_shows_attention(trainer: L.Trainer) -> None:
    network = model()
    with pytest.raises(UserError, match="no network yet"):
        next(generate(network))
    trainer.fit(network, data())
    assert len("".join(generate(network, "a", temperature=0.5, max_new_tokens=20))) == 20
    (weights,) = attention_maps(network, "a text")
    assert weights.shape == (2, 6, 6)
    assert network.training


def test_checkpoint_callbacks_work_without_the_command_line(text: str) -> None:
    callbacks = [BestCheckpoint(), LastCheckpoint()]
    trainer = L.Trainer(
        max_steps=4, val_check_interval=2, check_val_every_n_epoch=None, callbacks=callbacks,
        accelerator="cpu", enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(model(), data())
    folder = Path("lightning_logs/version_0/checkpoints")
    assert {path.name for path in folder.iterdir()} >= {"best.ckpt", "last.ckpt"}
    again = L.Trainer(max_steps=6, accelerator="cpu", logger=False, enable_progress_bar=False)
    again.fit(model(), data(), ckpt_path=folder / "last.ckpt", weights_only=True)
    assert again.global_step == 6
    loaded = LanguageModel.load_from_checkpoint(folder / "best.ckpt", weights_only=True)
    assert count_parameters(loaded.net) == 2033
