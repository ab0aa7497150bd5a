"""Reads a checkpoint once, into one object: the model, its tokenizer and the file's contents."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint_vetting import vet
from nanogpt.models.registry import Model, build_model, config_class
from nanogpt.notices import notice
from nanogpt.runs import CheckpointName, find_checkpoint
from nanogpt.text.tokenizer import Tokenizer

CORPUS_KEY = "CharDataModule"  # Lightning saves a data module's state under its class name
EARLIER_CORPUS_KEY = "CharacterData"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this project that has been read and checked.

    Args:
        path: path of the file.
        model: in evaluation mode and float32, on the CPU.
        tokenizer: tokenizer of the training text.
        content: everything in the file: ``hyper_parameters`` of the LightningModule, with the
            vocabulary; ``state_dict``, the weights; ``optimizer_states``; ``lr_schedulers``;
            ``global_step``; ``datamodule_hyper_parameters``; ``CharDataModule``, the identity of
            the corpus; ``callbacks``, with the losses in ``RunState``; and entries
            that only Lightning reads.
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
        """The name, SHA-256 and path of the corpus, and the one that it replaced, if any."""
        return dict(self.content[CORPUS_KEY])


def load_checkpoint(ckpt_path: str = "best", of_folder: CheckpointName = "best") -> Checkpoint:
    """Find and read a checkpoint or, if it is damaged, the other one of its run, with a notice.

    There is no fallback for a checkpoint given by its file name.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        of_folder: which checkpoint of a run folder to read.
    """
    path = find_checkpoint(ckpt_path, of_folder)
    try:
        return read_checkpoint(path)
    except UserError as error:
        other = path.with_name("last.ckpt" if path.name == "best.ckpt" else "best.ckpt")
        if path == Path(ckpt_path) or not other.is_file():
            raise
        try:
            checkpoint = read_checkpoint(other)
        except UserError:
            raise UserError(
                f"neither {path} nor {other.name} in the same folder can be read: pass another "
                f"checkpoint to --ckpt_path, or train again ({error})"
            ) from error
        notice(f"{path} is damaged: using {other} instead")
        return checkpoint


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file without running code from it; raise UserError if it is not valid.

    The architecture is one of the registry's. The settings are checked against the weights before
    memory is allocated.
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
        reason = ascii(" ".join(f"{kind}{error}".split())[:100])[1:-1]
        raise UserError(
            f"{str(path)!r} cannot be read as a nanogpt checkpoint ({reason}); "
            "give the path of a .ckpt file from lightning_logs/version_N/checkpoints/"
        ) from error
    return Checkpoint(path, model.eval().float(), tokenizer, content)


def _check_content(content: dict[str, Any]) -> None:
    """Check that all entries are present and of the right types."""
    if EARLIER_CORPUS_KEY in content:
        raise ValueError("it was written by an earlier version: see CHANGELOG.md")
    values = {**content["hyper_parameters"], "global_step": content["global_step"]}
    kinds = {"architecture": str, "vocabulary": str, "block_size": int, "global_step": int}
    for name, kind in kinds.items():
        if type(values.get(name)) is not kind:
            raise ValueError(f"{name} cannot be {values.get(name)!r}")
    if not 0 <= values["global_step"] < 2**62 or values["block_size"] >= 2**31:
        raise ValueError("global_step or block_size is out of range")
    if not all(value is None or type(value) is str for value in content[CORPUS_KEY].values()):
        raise ValueError("the description of its corpus is not valid")


def _build(hparams: dict[str, Any], state_dict: dict[str, Tensor]) -> Model:
    """Build a model around existing weights, without allocating its own."""
    names = [field.name for field in fields(config_class(hparams["architecture"]))]
    settings = {name: hparams[name] for name in names if name in hparams}
    with torch.device("meta"):  # shapes only
        model = build_model(hparams["architecture"], len(hparams["vocabulary"]), **settings)
    if not all(n.startswith("net.") and w.is_floating_point() for n, w in state_dict.items()):
        raise ValueError("the weights are not those of a language model")
    weights = {name.removeprefix("net."): weight for name, weight in state_dict.items()}
    model.load_state_dict(weights, assign=True)  # raises if a name or a shape differs
    return model
