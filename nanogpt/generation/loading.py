"""A model and its tokenizer from a checkpoint alone."""

from pathlib import Path
from typing import Any

import torch

from nanogpt.errors import UserError
from nanogpt.models import SETTINGS, Net, build_model
from nanogpt.text.tokenizer import Tokenizer


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this project: tensors and plain values, nothing that can run.

    Raises:
        UserError: if the file is no checkpoint of this project.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        Tokenizer(content["hyper_parameters"]["vocabulary"])
        missing = {"state_dict", "global_step", "CharacterData"} - content.keys()
        if missing or not {"architecture", "block_size"} <= content["hyper_parameters"].keys():
            raise ValueError("parts are missing")
    except Exception as error:  # a file can be wrong in as many ways as there are files
        raise _no_checkpoint(path, error) from error
    return content


def load_model(path: Path) -> tuple[Net, Tokenizer]:
    """Rebuild a trained model, in evaluation mode on the CPU, and its tokenizer.

    The architecture is chosen from this project's own list.

    Raises:
        UserError: if the file is no checkpoint of this project, or its parts do not fit.
    """
    content = read_checkpoint(path)
    hparams, prefix = content["hyper_parameters"], "net."
    try:
        tokenizer = Tokenizer(hparams["vocabulary"])
        settings = {name: hparams.get(name) for name in SETTINGS}  # older ones lack new settings
        model = build_model(hparams["architecture"], len(tokenizer.vocabulary), **settings)
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in content["state_dict"].items()
            if name.startswith(prefix)
        }
        model.load_state_dict(weights)
    except Exception as error:
        raise _no_checkpoint(path, error) from error
    return model.eval(), tokenizer


def _no_checkpoint(path: Path, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0][:100]
    return UserError(
        f"{path} is not a checkpoint of this project ({reason}); "
        "give the path of a .ckpt file from lightning_logs/version_N/checkpoints/"
    )
