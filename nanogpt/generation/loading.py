"""A model and its tokenizer from a checkpoint alone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.vetting import vet
from nanogpt.models import SETTINGS, Net, build_model
from nanogpt.text.tokenizer import Tokenizer

KINDS: dict[str, tuple[type, ...]] = dict.fromkeys(SETTINGS, (int, type(None))) | {
    "architecture": (str,),
    "vocabulary": (str,),
    "block_size": (int,),
    "dropout": (int, float, type(None)),
    "noise": (int, float, type(None)),
    "init": (str, type(None)),
    "parts": (list, type(None)),
    "positions": (str, type(None)),
}
LAYERS_WITHOUT_WEIGHTS = 64  # only these have no tensors in the file that bound their number


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project: tensors and plain values, nothing that can run.

    All that it says of the model is checked, against its weights too, before memory is taken.

    Raises:
        UserError: if the file is no checkpoint of this project, or its parts do not fit.
    """
    return read_trained(path)[0]


def load_model(path: Path) -> tuple[Net, Tokenizer]:
    """Rebuild a trained model, in evaluation mode on the CPU, and its tokenizer.

    The architecture is chosen from this project's own list.

    Raises:
        UserError: if the file is no checkpoint of this project, or its parts do not fit.
    """
    return read_trained(path)[1:]


def read_trained(path: Path) -> tuple[dict[str, Any], Net, Tokenizer]:
    """Return what is in a checkpoint, its model in evaluation mode, and its tokenizer.

    Raises:
        UserError: if the file is no checkpoint of this project, or its parts do not fit.
    """
    try:
        with path.open("rb") as file:
            vet(file)
            file.seek(0)
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        _check_parts(content)
        tokenizer = Tokenizer(content["hyper_parameters"]["vocabulary"])
        model = _assemble(content["hyper_parameters"], content["state_dict"])
    except Exception as error:  # a file can be wrong in as many ways as there are files
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = ascii(f"{kind}{error}".split("\n")[0][:100])[1:-1]
        raise UserError(
            f"{str(path)!r} is not a checkpoint of this project ({reason}); "
            "give the path of a .ckpt file from lightning_logs/version_N/checkpoints/"
        ) from error
    return content, model.eval().float(), tokenizer


def _check_parts(content: dict[str, Any]) -> None:
    """Check that all parts are there, and of their kinds: the file may say anything."""
    corpus, step = content["CharacterData"], content["global_step"]
    if type(step) is not int or not 0 <= step < 2**62:
        raise ValueError("global_step is no number of steps")
    if not all(type(value) in (str, type(None)) for value in corpus.values()):
        raise ValueError("CharacterData does not say what the model was trained on")
    hparams = content["hyper_parameters"]
    for name in ("architecture", "block_size", "vocabulary"):
        if name not in hparams:
            raise ValueError(f"{name} is missing")
    for name, kinds in KINDS.items():
        if type(hparams.get(name)) not in kinds:  # older checkpoints lack newer settings
            raise ValueError(f"{name} is a {type(hparams[name]).__name__}")
    if not all(type(part) is str for part in hparams.get("parts") or ()):
        raise ValueError("parts are no names")
    if not 0 < hparams["block_size"] < 2**31:  # a bigram's weights do not bound it
        raise ValueError("block_size is out of range")


def _assemble(hparams: dict[str, Any], state_dict: dict[str, Tensor]) -> Net:
    """Build a model around weights, taking no memory of its own.

    Raises:
        ValueError: if they are not those of such a model.
    """
    settings = {name: hparams.get(name) for name in SETTINGS}
    if (settings["n_layer"] or 1) > max(len(state_dict), LAYERS_WITHOUT_WEIGHTS):
        raise ValueError("n_layer is not that of the weights")
    with torch.device("meta"):  # shapes alone
        model = build_model(hparams["architecture"], len(hparams["vocabulary"]), **settings)
    expected = {f"net.{name}": weight.shape for name, weight in model.state_dict().items()}
    if expected != {name: weight.shape for name, weight in state_dict.items()}:
        raise ValueError("the weights are not those of such a model")
    if not all(weight.is_floating_point() for weight in state_dict.values()):
        raise ValueError("the weights are no floating-point numbers")
    weights = {name.removeprefix("net."): weight for name, weight in state_dict.items()}
    model.load_state_dict(weights, assign=True)
    return model
