"""Reads the checkpoint from which one's own run resumes.

It is a pickle, read with ``weights_only=True``. Everything in it is checked against the model and
the optimizer that it is for; the settings of the optimizer are taken from the config, not from it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings
from zipfile import ZipFile

import torch
from torch import Tensor, nn

from nanogpt.generation.checkpoint import (
    CORPUS_KEY,
    build_on_meta,
    check_finite,
    check_shapes,
    read_or_other,
    unreadable,
)
from nanogpt.runs import STATE, find_checkpoint
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.training.optimizer import build_optimizer

STATE_NAMES = ({"step", "exp_avg", "exp_avg_sq"}, {"momentum"})  # of AdamW, and of Muon
NUMBERS = {"RunState": ("seconds",), "EvaluationReport": ("best_val_loss",)}


@dataclass(frozen=True)
class TrainingState:
    """A checkpoint of a run, and its content as Lightning saved it."""

    path: Path
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """The number of completed optimizer steps."""
        return int(self.content["global_step"])

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters of the LightningModule."""
        return dict(self.content["hyper_parameters"])

    @property
    def corpus(self) -> dict[str, str | None]:
        """The identity of the corpus."""
        return dict(self.content[CORPUS_KEY])


def load_training_state(ckpt_path: str) -> TrainingState:
    """Find and read a checkpoint or, if it is damaged, the other one of its run, with a notice.

    There is no fallback for a file given by its name.
    """
    return read_or_other(read_training_state, find_checkpoint(ckpt_path), ckpt_path)


def read_training_state(path: Path) -> TrainingState:
    """Read a checkpoint; raise a UserError if it is not valid."""
    try:
        check_records(path)
        with catch_warnings(action="ignore"):  # of kinds of tensors that are refused below
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            check_content(content)
    except Exception as error:  # a damaged file can fail in any way
        raise unreadable(path, error, "checkpoint", STATE) from error
    return TrainingState(path, content)


def check_records(path: Path) -> None:
    """Raise an exception if a file is no archive, or has compressed records.

    PyTorch writes none, but would expand them: a few megabytes to many gigabytes.
    """
    with ZipFile(path) as archive:
        if any(record.file_size > record.compress_size for record in archive.infolist()):
            raise ValueError("its records are compressed")


def check_content(content: Mapping[str, Any]) -> None:
    """Raise an exception if an entry that a run resumes from is missing or not valid."""
    hparams, step = content["hyper_parameters"], content["global_step"]
    if type(step) is not int or not 0 <= step < 2**62:
        raise ValueError(f"global_step cannot be {step!r}")
    version = content["pytorch-lightning_version"]  # from which Lightning may convert it
    if type(version) is not str or not re.fullmatch(r"2\.\d+\.\w+", version):
        raise ValueError(f"it was written by Lightning {version!r}")
    if not isinstance(content.get("callbacks"), dict) or not content.get("optimizer_states"):
        raise ValueError("it has no optimizer state, or was written by an earlier version")
    if not all(value is None or type(value) is str for value in content[CORPUS_KEY].values()):
        raise ValueError("the description of its corpus is not valid")
    vocabulary = Tokenizer(hparams["vocabulary"]).vocabulary
    model = build_on_meta(hparams, len(vocabulary))
    weights = {name.removeprefix("net."): weight for name, weight in content["state_dict"].items()}
    check_tensors(weights)
    check_shapes(model, {name: weight.shape for name, weight in weights.items()})
    check_finite(weights)
    check_callbacks(content["callbacks"])
    for optimizer in content["optimizer_states"]:
        check_optimizer(optimizer, model, hparams)


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise ValueError if a value is not a dense, contiguous tensor of floating-point numbers."""
    for name, tensor in tensors.items():
        plain = type(tensor) is Tensor and tensor.layout is torch.strided
        if not plain or not tensor.is_floating_point() or not tensor.is_contiguous():
            raise ValueError(f"{name} is no plain tensor")


def check_optimizer(state: Mapping[str, Any], model: nn.Module, hparams: Mapping[str, Any]) -> None:
    """Raise ValueError if the state of an optimizer does not fit the parameters of a model.

    A tensor of another size would make a fused optimizer write past its end.
    """
    groups = build_optimizer(model, hparams, fused=False).param_groups
    parameters = [parameter for group in groups for parameter in group["params"]]
    saved = [index for group in state["param_groups"] for index in group["params"]]
    if saved != list(range(len(parameters))):
        raise ValueError("the optimizer has other parameters than the model")
    for index, values in state["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"the optimizer has no parameter {index!r}")
        if not isinstance(values, dict) or set(values) not in STATE_NAMES:
            raise ValueError(f"the optimizer state has other entries: {values}"[:90])
        check_tensors(values)
        check_finite(values)
        shapes = {name: () if name == "step" else parameters[index].shape for name in values}
        if any(tuple(values[name].shape) != tuple(shape) for name, shape in shapes.items()):
            raise ValueError(f"the optimizer state of parameter {index} has another shape")


def check_callbacks(callbacks: Mapping[str, Any]) -> None:
    """Raise an exception if the state of one of this project's callbacks is not valid."""
    for key, state in callbacks.items():
        name = key.partition("{")[0]  # a ModelCheckpoint's has its settings
        if name == "RunState":
            for step, train, val in state["history"]:
                if type(step) is not int or type(train) is not float or type(val) is not float:
                    raise ValueError("its evaluations are not valid")
        numbers = [state[field] for field in NUMBERS.get(name, ())]
        if not all(type(number) is float and number >= 0 for number in numbers):
            raise ValueError(f"the state of {name} is not valid")
        if name == "BestCheckpoint" and (score := state["best_model_score"]) is not None:
            check_tensors({"the best val loss": score})
            if score.shape or score.isnan():
                raise ValueError("the best val loss is not a number")
