"""Settings as they are given: checked, taken from a run, and told from the defaults."""

import json
from typing import Any

from jsonargparse import Namespace

from nanogpt.errors import UserError
from nanogpt.generation.loading import read_checkpoint
from nanogpt.runs import find_checkpoint, run_of

LINKED = ("config", "data.block_size", "data.seed")  # which other settings give


def check_steps(settings: Namespace) -> None:
    """Check the settings that count optimizer steps.

    Raises:
        UserError: if one of them makes no sense.
    """
    trainer = settings.trainer
    if trainer.max_epochs != -1 or (trainer.max_steps < 0 and trainer.max_time is None):
        raise UserError(
            "training is counted in optimizer steps: set --trainer.max_steps (or "
            "--trainer.max_time), and leave --trainer.max_epochs out"
        )
    if settings.model.schedule != "constant" and trainer.max_steps < 0:
        raise UserError(
            f"the schedule {settings.model.schedule} ends at the last step: set "
            "--trainer.max_steps, or --model.schedule constant"
        )
    for name in ("val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
        value = trainer[name]
        if (value is None or type(value) is not int or value < 1) and (
            value is not None or name == "val_check_interval"
        ):
            raise UserError(f"{name} is a whole number of steps, from 1, not {value!r}")
    if trainer.check_val_every_n_epoch is not None:
        raise UserError(
            "evaluations are counted in steps: set --trainer.val_check_interval, and leave "
            "--trainer.check_val_every_n_epoch out"
        )


def validate_options(options: list[str]) -> list[str]:
    """Put the run's own config before the given options, and its checkpoint after them."""
    chosen = "best"
    for place, option in enumerate(options):
        name, _, value = option.partition("=")
        if name == "--ckpt_path":
            chosen = value or "".join(options[place + 1 : place + 2])
    checkpoint = find_checkpoint(chosen)
    if found := run_of(checkpoint):
        config = str(found.config)
    else:
        content = read_checkpoint(checkpoint)
        model = dict(content["hyper_parameters"], vocabulary=None)
        data = dict(content["datamodule_hyper_parameters"])
        seed = data.pop("seed")
        del data["block_size"]  # the model's
        config = json.dumps({"seed_everything": seed, "model": model, "data": data})
    return ["--config", config, *options, "--ckpt_path", str(checkpoint), "--verbose", "false"]


def changed_settings(settings: Namespace, defaults: Namespace) -> dict[str, Any]:
    """Return the settings that are not at their defaults, by full name."""
    usual, given = (vars(namespace.as_flat()) for namespace in (defaults, settings))
    return {k: v for k, v in given.items() if k in usual and k not in LINKED and v != usual[k]}
