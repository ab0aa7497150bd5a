"""The config of an earlier run: prepended to the options, and compared with the current one."""

import json
from typing import Any

import yaml
from jsonargparse import Namespace

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import Checkpoint, load_checkpoint
from nanogpt.notices import notice
from nanogpt.runs import run_of

# set for each command, or derived from other settings
NOT_COMPARED = ("config", "ckpt_path", "data.block_size", "data.seed", "model.vocabulary")


def prepend_run_config(command: str, options: list[str]) -> tuple[list[str], Checkpoint | None]:
    """Put the config of the run of ``--ckpt_path`` before the options, which override it.

    Without it, ``validate`` uses the best checkpoint of the newest run.

    Returns:
        The options, and the checkpoint unless ``fit`` starts a new run.

    Raises:
        UserError: if there is no such checkpoint, or neither a run nor ``--config`` for ``fit``.
    """
    given, is_fit = given_checkpoint(options), command == "fit"
    if is_fit and given in (None, "null"):
        return options, None
    checkpoint = load_checkpoint("best" if given is None else given, "last" if is_fit else "best")
    path = ["--ckpt_path", str(checkpoint.path), *([] if is_fit else ["--verbose", "false"])]
    if run := run_of(checkpoint.path):
        config = str(run.config)
    elif is_fit and {option.partition("=")[0] for option in options} & {"-c", "--config"}:
        return [*options, *path], checkpoint
    elif is_fit:
        raise UserError(
            f"{checkpoint.path} is not in a run folder: give the config to resume it with, "
            "--config FILE"
        )
    else:
        data = dict(checkpoint.content["datamodule_hyper_parameters"])
        del data["block_size"]  # derived from the model
        seed, model = data.pop("seed"), checkpoint.settings | {"vocabulary": None}
        config = json.dumps({"seed_everything": seed, "model": model, "data": data})
    return ["--config", config, *options, *path], checkpoint


def given_checkpoint(options: list[str]) -> str | None:
    """Return the last value of ``--ckpt_path`` in the options, if any."""
    value = None
    for i, option in enumerate(options):
        name, equals, rest = option.partition("=")
        if name == "--ckpt_path":
            value = rest if equals else "".join(options[i + 1 : i + 2])
    return value


def notice_differences(saved: str, current: str, defaults: str) -> None:
    """Print a notice for each setting that differs from the config of a run, all in YAML.

    A setting that the run's config lacks, as of an older version, had its default.
    """
    was, now, default = (flatten(yaml.safe_load(text)) for text in (saved, current, defaults))
    for name, value in default.items():
        if not any(name.startswith(f"{known}.") for known in was):  # of another class, or of none
            was.setdefault(name, value)
    for name, value in now.items():
        if name in was and name not in NOT_COMPARED and value != was[name]:
            notice(f"{name} changed from {was[name]!r} to {value!r}")


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their full names, such as ``model.n_layer``.

    A class is represented by its name, and its arguments by names such as ``samples.length``.
    """
    if isinstance(settings, list):
        return {prefix: [flatten(entry).get("", entry) for entry in settings]}
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    if "class_path" in settings:
        arguments = flatten(settings.get("init_args") or {}, prefix)
        name = str(settings["class_path"]).rpartition(".")[2]
        return {**arguments, prefix: name}
    names = {name: f"{prefix}.{name}" if prefix else str(name) for name in settings}
    return {k: v for name in settings for k, v in flatten(settings[name], names[name]).items()}


def changed_settings(settings: Namespace, defaults: Namespace) -> dict[str, Any]:
    """Return the settings that differ from their defaults, by full name."""
    default, given = (vars(namespace.as_flat()) for namespace in (defaults, settings))
    return {
        name: value
        for name, value in given.items()
        if name in default and name not in NOT_COMPARED and value != default[name]
    }
