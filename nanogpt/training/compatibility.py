"""Whether a checkpoint fits a model."""

from collections.abc import Mapping
from typing import Any

from nanogpt.errors import UserError
from nanogpt.models.registry import structural_settings


def check_compatible(saved: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    """Check that the hyperparameters of a checkpoint match those of a model.

    Raises:
        UserError: if architecture, structure, vocabulary or optimizer differ.
    """
    for name in ("architecture", *structural_settings(hparams["architecture"]), "vocabulary"):
        theirs, ours = saved.get(name), hparams[name]
        if theirs != ours:
            raise UserError(
                f"the checkpoint has {name} {theirs!r}, not {ours!r}: use the settings and the "
                "text of its own run"
            )
    optimizer = saved.get("optimizer", "adamw")
    if optimizer != hparams["optimizer"]:
        raise UserError(
            f"the checkpoint has the state of {optimizer}, not of {hparams['optimizer']}: use "
            f"--model.optimizer {optimizer}"
        )
