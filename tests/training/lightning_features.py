"""Rows of ``test_lightning_features.py``: Lightning's callbacks and Trainer flags, with outcomes.

A row says that options of ``fit`` work, or with which one-line error they are refused. The tables
have a key for each callback and each flag that Lightning has, which the test checks.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import Logger

NOTICES = r"(notice: .*\n)*"
HERE = __name__  # of the classes below, for --trainer.callbacks and --trainer.logger


# classes of a user


class OwnLogger(Logger):
    """Appends all metrics to ``own.jsonl``; has no folder."""

    @property
    def name(self) -> str:
        return "own"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kw: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with Path("own.jsonl").open("a") as file:
            file.write(
                json.dumps({"step": step, **{k: float(v) for k, v in metrics.items()}}) + "\n"
            )


class StopsAtStep5(callbacks.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == 5


class RaisesAtStep5(callbacks.Callback):
    """Raises an exception of a class in ``builtins``, as a mistake in a user's code does."""

    def __init__(self, error: str) -> None:
        self.error: type[Exception] = getattr(__import__("builtins"), error)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == 5:
            raise self.error("a mistake of the user's own")


class LogsOwnMetric(callbacks.Callback):
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.log("own/metric", 1.0)


def print_hello(*args: Any) -> None:
    print("hello from a LambdaCallback")


def number_of_windows(batch: tuple[torch.Tensor, torch.Tensor]) -> int:
    return len(batch[0])


# rows


@dataclass(frozen=True)
class Row:
    """Options of ``fit`` and their outcome.

    Args:
        options: added to those of the fixture ``fit``.
        refused: regular expression of the one-line error; None if the options work.
        evaluations: steps of the printed evaluations.
        report: regular expression of what is shown besides, on either stream.
        err: regular expression of the whole of stderr; None for any.
        ended: text after ``training ended at step ``; None if the run reaches its last step.
        checkpoints: files that are there at the end, among others.
    """

    options: tuple[str, ...]
    refused: str | None = None
    evaluations: tuple[int, ...] = (0, 4, 6)
    report: str | None = None
    err: str | None = ""
    ended: str | None = None
    checkpoints: tuple[str, ...] = ("best.ckpt", "last.ckpt")


def parts(kind: str, *items: Any) -> str:
    """Return an option with a list of (class path, init args) pairs or class paths."""
    pairs = [(item, {}) if isinstance(item, str) else item for item in items]
    return f"--trainer.{kind}=" + json.dumps(
        [{"class_path": path, "init_args": init} for path, init in pairs]
    )


def works(path: str, init: dict[str, Any] | None = None, *options: str, **outcome: Any) -> Row:
    return Row((parts("callbacks", (path, init or {})), *options), **outcome)


def refused(
    path: str, init: dict[str, Any] | None = None, *options: str, because: str, needs: str = ""
) -> Row:
    """Return a row for a callback that is refused, or works where a package is installed."""
    if needs and find_spec(needs):
        return works(path, init, *options, err=None)
    return works(path, init, *options, refused=because)


def flag(*values: str, **outcome: Any) -> Row:
    return Row(tuple(f"--trainer.{value}" for value in values), **outcome)


MORE = ("--trainer.max_steps=20",)
UNSCHEDULED = ("--model.schedule=constant", "--model.warmup_steps=0")

# fmt: off
CALLBACKS: dict[str, list[Row]] = {
    "BackboneFinetuning": [refused("BackboneFinetuning", because="backbone")],
    "BaseFinetuning": [refused("BaseFinetuning", because="BaseFinetuning")],
    "BasePredictionWriter": [works("BasePredictionWriter", {"write_interval": "epoch"})],
    "BatchSizeFinder": [refused("BatchSizeFinder", because="--data.batch_size")],
    "Callback": [works("Callback")],
    "Checkpoint": [works("Checkpoint")],
    "DeviceStatsMonitor": [
        refused("DeviceStatsMonitor", because="psutil", needs="psutil"),
        works("DeviceStatsMonitor", {"cpu_stats": False}),
        refused(
            "DeviceStatsMonitor", {"cpu_stats": False}, "--trainer.logger=false", because="logger"
        ),
    ],
    "EarlyStopping": [
        works("EarlyStopping", {"monitor": "loss/val"}),
        works(
            "EarlyStopping",
            {"monitor": "loss/val", "verbose": True},
            err=None,
            report="Metric loss/val improved",
        ),
        works(
            "EarlyStopping",
            {"monitor": "loss/val", "mode": "max", "patience": 1},
            *MORE,
            evaluations=(0, 4, 8),
            ended="8 of 20",
        ),
        works(
            "EarlyStopping",
            {"monitor": "loss/val", "mode": "max", "patience": 1},
            *MORE,
            "--trainer.min_steps=10",
            err="Trainer was signaled to stop but.*\n",
            evaluations=(0, 4, 8, 10),
            ended="10 of 20",
        ),
        works(
            "EarlyStopping",
            {"monitor": "loss/train", "stopping_threshold": 9.0},
            *MORE,
            evaluations=(0, 4),
            ended="4 of 20",
        ),
        works("EarlyStopping", {"monitor": "loss/val", "check_finite": False}),
        refused("EarlyStopping", {"monitor": "val_loss"}, because="val_loss.*loss/val"),
        works("EarlyStopping", {"monitor": "val_loss", "strict": False}),
        refused("EarlyStopping", {"monitor": "loss/val", "mode": "least"}, because="mode"),
    ],
    "GradientAccumulationScheduler": [
        refused(
            "GradientAccumulationScheduler",
            {"scheduling": {"0": 2}},
            because="accumulate_grad_batches",
        ),
        refused(
            "GradientAccumulationScheduler",
            {"scheduling": {"4": 2}},
            because="accumulate_grad_batches",
        ),
    ],
    "LambdaCallback": [
        works("LambdaCallback", {"on_train_start": f"{HERE}.print_hello"}, report="hello from a"),
    ],
    "LearningRateFinder": [refused("LearningRateFinder", because="--model.learning_rate")],
    "LearningRateMonitor": [
        works("LearningRateMonitor"),
        works("LearningRateMonitor", {"logging_interval": "step", "log_momentum": True}),
        works("LearningRateMonitor", {"logging_interval": "epoch"}),
        refused("LearningRateMonitor", {}, "--trainer.logger=false", because="logger"),
    ],
    "ModelCheckpoint": [
        works("ModelCheckpoint"),
        works(
            "ModelCheckpoint",
            {"every_n_train_steps": 2, "save_top_k": -1},
            checkpoints=(
                "best.ckpt",
                "last.ckpt",
                "epoch=0-step=2.ckpt",
                "epoch=0-step=4.ckpt",
                "epoch=0-step=6.ckpt",
            ),
        ),
        works(
            "ModelCheckpoint",
            {"monitor": "loss/val", "filename": "{step}"},
            checkpoints=("best.ckpt", "last.ckpt", "step=6.ckpt"),
        ),
        works("ModelCheckpoint", {"save_last": True, "filename": "mine"}),
        works("ModelCheckpoint", {"dirpath": "elsewhere", "train_time_interval": "00:00:01:00"}),
        refused("ModelCheckpoint", {"monitor": "val_loss"}, because="val_loss.*loss/val"),
        refused(
            "ModelCheckpoint",
            {},
            "--trainer.enable_checkpointing=false",
            because="enable_checkpointing",
        ),
        Row((parts("callbacks", "ModelCheckpoint", "ModelCheckpoint"),), refused="ModelCheckpoint"),
    ],
    "ModelPruning": [
        refused("ModelPruning", {"pruning_fn": "l1_unstructured"}, because="ModelPruning"),
    ],
    "ModelSummary": [works("ModelSummary", {"max_depth": 2}, err=None, report="Trainable params")],
    "OnExceptionCheckpoint": [works("OnExceptionCheckpoint", {"dirpath": "."})],
    "ProgressBar": [refused("ProgressBar", because="TQDMProgressBar")],
    "RichModelSummary": [refused("RichModelSummary", because="rich", needs="rich")],
    "RichProgressBar": [refused("RichProgressBar", because="rich", needs="rich")],
    "StochasticWeightAveraging": [
        refused("StochasticWeightAveraging", {"swa_lrs": 1e-3}, because="WeightAveraging"),
        refused(
            "StochasticWeightAveraging",
            {"swa_lrs": 1e-3, "swa_epoch_start": 1},
            because="WeightAveraging",
        ),
    ],
    "SpikeDetection": [
        works("SpikeDetection"),  # and test_loss_spike_ends_the_run
    ],
    "ThroughputMonitor": [
        works("ThroughputMonitor", {"batch_size_fn": f"{HERE}.number_of_windows"}, err=NOTICES),
        works(
            "ThroughputMonitor",
            {"batch_size_fn": f"{HERE}.number_of_windows", "window_size": 2},
            "--trainer.accumulate_grad_batches=2",
            err=NOTICES,
            evaluations=(0, 2, 4, 6),
        ),
    ],
    "Timer": [
        works("Timer", {"duration": "00:01:00:00"}),
        works("Timer", {"duration": {"minutes": 60}, "interval": "epoch"}),
        works(
            "Timer",
            {"duration": "00:00:00:00", "verbose": True},
            err=None,
            ended="0 of 6",
            evaluations=(0,),
            report="Time limit reached",
            checkpoints=(),
        ),
        refused("Timer", {"duration": "an hour"}, because="hour"),
    ],
    "TQDMProgressBar": [works("TQDMProgressBar", err=None, report="Epoch 0")],
    "EMAWeightAveraging": [works("EMAWeightAveraging", {"decay": 0.5}, err=NOTICES)],
    "WeightAveraging": [works("WeightAveraging", err=NOTICES)],
}

# the comments name tests of a flag beside its rows
FLAGS: dict[str, list[Row]] = {
    "accelerator": [
        flag("accelerator=auto"),
        flag("accelerator=hpu", refused="hpu"),
        flag("accelerator=tpu", refused="torch_xla|tpu"),
    ],
    "strategy": [
        flag("strategy=auto"),
        flag("strategy=fsdp", refused="fsdp"),
        flag("strategy=telepathy", refused="telepathy"),
    ],
    "devices": [
        flag("devices=auto"),
        flag("devices=0", refused="devices"),
        flag("devices=[0,1]", refused="devices"),
    ],
    "num_nodes": [flag("num_nodes=1"), flag("num_nodes=0", refused="num_nodes")],
    "precision": [  # test_precisions_train_alike
        flag("precision=bf17", refused="bf16-mixed"),
        flag("precision=transformer-engine", refused="transformer_engine"),
    ],
    "logger": [flag("logger=true"), flag("logger=NoLogger", refused="NoLogger")],
    "callbacks": [
        flag("callbacks=NoCallback", refused="NoCallback"),
        flag(f"callbacks={HERE}.LogsOwnMetric"),
        Row(
            (
                parts(
                    "callbacks",
                    f"{HERE}.LogsOwnMetric",
                    ("EarlyStopping", {"monitor": "own/metric", "patience": 2}),
                ),
            )
        ),
    ],
    "fast_dev_run": [flag("fast_dev_run=-1", refused="fast_dev_run")],  # test_fast_dev_run
    "max_epochs": [flag("max_epochs=3", refused="max_steps")],
    "min_epochs": [flag("min_epochs=1", refused="min_steps")],
    "max_steps": [
        flag("max_steps=0", evaluations=(0,), checkpoints=()),
        flag("max_steps=4", evaluations=(0, 4)),
        flag("max_steps=-1", refused="max_steps"),
        flag("max_steps=-2", refused="max_steps"),
    ],
    "min_steps": [flag("min_steps=3"), flag("min_steps=30")],
    "max_time": [
        flag("max_time=00:01:00:00"),
        flag(
            "max_time=00:00:00:00",
            evaluations=(0,),
            ended="0 of 6",
            checkpoints=(),
            err="Time limit reached.*\n",
        ),
        flag("max_time={minutes: 5}"),
        flag("max_time=soon", refused="soon|max_time"),
        flag(
            "max_time=00:01:00:00",
            f"callbacks={HERE}.StopsAtStep5",
            ended="5 of 6",
            evaluations=(0, 4, 5),
        ),
    ],
    "limit_train_batches": [
        flag("limit_train_batches=2"),
        flag("limit_train_batches=1.0"),
        flag("limit_train_batches=0.5", refused="limit_train_batches"),
        flag("limit_train_batches=0", evaluations=(0,), ended="0 of 6", checkpoints=()),
    ],
    "limit_val_batches": [
        flag("limit_val_batches=1"),
        flag("limit_val_batches=0.5"),
        flag("limit_val_batches=0", evaluations=(), checkpoints=("last.ckpt",)),
    ],
    "limit_test_batches": [flag("limit_test_batches=1")],
    "limit_predict_batches": [flag("limit_predict_batches=1")],
    "overfit_batches": [  # test_overfit_batches_repeats_the_first_batches
        flag("overfit_batches=2"),
        flag("overfit_batches=0.5", refused="overfit_batches"),
    ],
    "val_check_interval": [
        flag("val_check_interval=3", evaluations=(0, 3, 6)),
        flag("val_check_interval=100", evaluations=(0, 6)),
        flag("val_check_interval=0", refused="val_check_interval"),
        flag("val_check_interval=0.5", refused="val_check_interval"),
        flag("val_check_interval=1.0", refused="val_check_interval"),
        flag("val_check_interval=00:00:01:00", refused="val_check_interval"),
    ],
    "check_val_every_n_epoch": [flag("check_val_every_n_epoch=1", refused="val_check_interval")],
    "num_sanity_val_steps": [
        flag("num_sanity_val_steps=0", evaluations=(4, 6)),
        flag("num_sanity_val_steps=-1"),
    ],
    "log_every_n_steps": [
        flag("log_every_n_steps=1"),
        flag("log_every_n_steps=0", refused="log_every_n_steps"),
        flag("log_every_n_steps=100"),
    ],
    "enable_checkpointing": [
        flag("enable_checkpointing=true"),
        flag("enable_checkpointing=false", checkpoints=()),
    ],
    "enable_progress_bar": [flag("enable_progress_bar=true"), flag("enable_progress_bar=false")],
    "enable_model_summary": [
        flag("enable_model_summary=true", err=None, report="Trainable params"),
        flag("enable_model_summary=false"),
    ],
    "accumulate_grad_batches": [
        # val_check_interval counts batches
        flag("accumulate_grad_batches=2", evaluations=(0, 2, 4, 6)),
        flag("accumulate_grad_batches=4", evaluations=(0, 1, 2, 3, 4, 5, 6)),
        flag("accumulate_grad_batches=2", "val_check_interval=3", refused="val_check_interval"),
        flag("accumulate_grad_batches=3", refused="make it a multiple"),
        flag("accumulate_grad_batches=0", refused="accumulate_grad_batches"),
    ],
    "gradient_clip_val": [
        flag("gradient_clip_val=1.0"),
        flag("gradient_clip_val=1", "precision=bf16-mixed", err=NOTICES),
        flag("gradient_clip_val=1", "precision=16-mixed", err=NOTICES),
        flag("gradient_clip_val=high", refused="gradient_clip_val"),
    ],
    "gradient_clip_algorithm": [
        flag("gradient_clip_val=1", "gradient_clip_algorithm=value"),
        flag("gradient_clip_algorithm=median", refused="gradient_clip_algorithm"),
    ],
    "deterministic": [flag("deterministic=true"), flag("deterministic=warn")],
    "benchmark": [flag("benchmark=true")],
    "inference_mode": [flag("inference_mode=false")],
    "use_distributed_sampler": [flag("use_distributed_sampler=false")],
    "profiler": [
        flag("profiler=simple", err=None, report="Profiler Report"),
        flag("profiler=advanced", err=None, report="Profiler Report"),
        flag("profiler=PassThroughProfiler"),
        flag("profiler=xla", refused="torch_xla"),
        flag("profiler=stopwatch", refused="profiler.*simple"),
    ],
    "detect_anomaly": [flag("detect_anomaly=true")],
    "barebones": [flag("barebones=true", refused="barebones")],
    "plugins": [
        Row((parts("plugins", "lightning.pytorch.plugins.environments.LightningEnvironment"),)),
        Row(
            (parts("plugins", "lightning.pytorch.plugins.io.TorchCheckpointIO"),),
            refused="CheckpointIO",
        ),
        flag("plugins=[telepathy]", refused="telepathy|plugins"),
    ],
    "sync_batchnorm": [flag("sync_batchnorm=true")],
    "reload_dataloaders_every_n_epochs": [
        flag("reload_dataloaders_every_n_epochs=1"),
        flag("reload_dataloaders_every_n_epochs=-1", refused="reload_dataloaders_every_n_epochs"),
    ],
    "default_root_dir": [flag("default_root_dir=elsewhere")],
    "enable_autolog_hparams": [flag("enable_autolog_hparams=false")],
    "model_registry": [flag("model_registry=mine")],
}

LOGGERS = {
    "none": "--trainer.logger=false",
    "default": "--trainer.logger=true",
    "tensorboard": "--trainer.logger=TensorBoardLogger",
    "csv": "--trainer.logger=CSVLogger",
    "csv_by_path": parts("logger", ("CSVLogger", {"save_dir": "."})),
    "tensorboard_csv": parts("logger", ("TensorBoardLogger", {"save_dir": "."}),
                             ("CSVLogger", {"save_dir": "."})),
    "csv_tensorboard": parts("logger", ("CSVLogger", {"save_dir": "."}),
                             ("TensorBoardLogger", {"save_dir": "."})),
    "own": f"--trainer.logger={HERE}.OwnLogger",
    "own_tensorboard": parts("logger", f"{HERE}.OwnLogger",
                             ("TensorBoardLogger", {"save_dir": "."})),
    "tensorboard_own": parts("logger", ("TensorBoardLogger", {"save_dir": "."}),
                             f"{HERE}.OwnLogger"),
    "tensorboard_elsewhere": parts("logger", ("TensorBoardLogger", {"save_dir": "tb"})),
    "csv_elsewhere": parts("logger", ("CSVLogger", {"save_dir": "csv", "name": "runs"})),
}
RECORDED = {
    "none": [],
    "default": ["TensorBoardLogger"],
    "tensorboard": ["TensorBoardLogger"],
    "csv": ["CSVLogger"],
    "csv_by_path": ["CSVLogger"],
    "tensorboard_csv": ["CSVLogger", "TensorBoardLogger"],
    "csv_tensorboard": ["CSVLogger", "TensorBoardLogger"],
    "own": ["OwnLogger"],
    "own_tensorboard": ["OwnLogger", "TensorBoardLogger"],
    "tensorboard_own": ["OwnLogger", "TensorBoardLogger"],
    "tensorboard_elsewhere": ["TensorBoardLogger"],
    "csv_elsewhere": ["CSVLogger"],
}
FOLDERS = {
    "tensorboard_elsewhere": "tb/lightning_logs/version_0",
    "csv_elsewhere": "csv/runs/version_0",
}
# fmt: on
