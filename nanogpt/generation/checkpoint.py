"""Reads a checkpoint once, into one object: the model, its tokenizer and the file's contents."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint_vetting import vet
from nanogpt.models.registry import Model, build_model, config_class
from nanogpt.runs import CheckpointName, read_with_fallback
from nanogpt.text.tokenizer import Tokenizer

CORPUS_KEY = "CharDataModule"  # Lightning saves a data module's state under its class name
EARLIER_CORPUS_KEY = "CharacterData"
MAX_LAYERS_WITHOUT_WEIGHTS = 64  # the weights in the file do not bound their number


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project that has been read and checked.

    Args:
        path: of the file.
        model: in evaluation mode and float32, on the CPU.
        tokenizer: of the text it was trained on.
        content: everything in the file, as Lightning saved it.
    """

    path: Path
    model: Model
    tokenizer: Tokenizer
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """The number of optimizer steps it was trained for."""
        return int(self.content["global_step"])

    @property
    def settings(self) -> dict[str, Any]:
        """The hyperparameters of the LightningModule."""
        return dict(self.content["hyper_parameters"])

    @property
    def corpus(self) -> dict[str, str | None]:
        """The name and SHA-256 of the corpus, and the one that it replaced, if any."""
        return dict(self.content[CORPUS_KEY])


def load_checkpoint(ckpt_path: str = "best", of_folder: CheckpointName = "best") -> Checkpoint:
    """Find and read a checkpoint; if it is damaged, the other one of its run with a notice.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        of_folder: which checkpoint of a run folder to read.

    Raises:
        UserError: if there is no such checkpoint, or none that can be read.
    """
    return read_with_fallback(read_checkpoint, ckpt_path, of_folder)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file without running code from it.

    The architecture is one of the registry's. The settings are checked against the weights before
    memory is allocated.

    Raises:
        UserError: if the file is not a checkpoint of this project, or its parts do not match.
    """
    try:
        with path.open("rb") as file:
            vet(file)
            file.seek(0)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        _check_content(content)
        tokenizer = Tokenizer(content["hyper_parameters"]["vocabulary"])
        model = _build(content["hyper_parameters"], content["state_dict"])
    except Exception as error:  # a damaged file can fail in any way
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = ascii(f"{kind}{error}".split("\n")[0][:100])[1:-1]
        raise UserError(
            f"{str(path)!r} is not a checkpoint of this version of the project ({reason}); "
            "give the path of a .ckpt file from lightning_logs/version_N/checkpoints/"
        ) from error
    return Checkpoint(path, model.eval().float(), tokenizer, content)


def _check_content(content: dict[str, Any]) -> None:
    """Check that all entries are present and of the right types."""
    if EARLIER_CORPUS_KEY in content:
        raise ValueError("it was written by an earlier version: see CHANGELOG.md")
    corpus, step = content[CORPUS_KEY], content["global_step"]
    if type(step) is not int or not 0 <= step < 2**62:
        raise ValueError(f"global_step cannot be {step!r}")
    if not all(type(value) in (str, type(None)) for value in corpus.values()):
        raise ValueError("the description of its corpus is not valid")
    hparams = content["hyper_parameters"]
    for name, kind in (("architecture", str), ("block_size", int), ("vocabulary", str)):
        if name not in hparams:
            raise ValueError(f"{name} is missing")
        if type(hparams[name]) is not kind:
            raise ValueError(f"{name} is a {type(hparams[name]).__name__}")
    if not 0 < hparams["block_size"] < 2**31:  # a bigram's weights do not bound it
        raise ValueError("block_size is out of range")


def _build(hparams: dict[str, Any], state_dict: dict[str, Tensor]) -> Model:
    """Build a model around existing weights, without allocating its own.

    Raises:
        ValueError: if the weights do not match the settings.
    """
    names = [field.name for field in fields(config_class(hparams["architecture"]))]
    settings = {name: hparams[name] for name in names if name in hparams}
    n_layer = settings.get("n_layer")
    if isinstance(n_layer, int) and n_layer > max(len(state_dict), MAX_LAYERS_WITHOUT_WEIGHTS):
        raise ValueError("n_layer does not match the weights")
    with torch.device("meta"):  # shapes only
        model = build_model(hparams["architecture"], len(hparams["vocabulary"]), **settings)
    expected = {f"net.{name}": weight.shape for name, weight in model.state_dict().items()}
    if expected != {name: weight.shape for name, weight in state_dict.items()}:
        raise ValueError("the weights do not match the settings")
    if not all(weight.is_floating_point() for weight in state_dict.values()):
        raise ValueError("the weights are not floating-point numbers")
    weights = {name.removeprefix("net."): weight for name, weight in state_dict.items()}
    model.load_state_dict(weights, assign=True)
    return model
