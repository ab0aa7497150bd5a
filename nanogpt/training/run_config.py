"""The config of an earlier run: prepended to the options, and compared with the current one."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import Checkpoint, load_checkpoint
from nanogpt.notices import notice
from nanogpt.runs import run_of
from nanogpt.text import corpora
from nanogpt.training.config_loader import load_yaml
from nanogpt.training.training_state import TrainingState, load_training_state

TRUSTED = ("lightning.", "torch.", "nanogpt.")
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")  # an import path
PLAIN = ("model.", "data.", "teachers", "reference", "ckpt_path", "trainer.default_root_dir")
MAX_CONFIG = 2**17  # bytes
MAX_TEXT = 1000  # characters
MAX_NESTED = 500  # brackets and other signs of nesting

# set for each command, or derived from other settings
NOT_COMPARED = ("config", "ckpt_path", "data.block_size", "data.seed", "model.vocabulary")


def prepend_run_config(
    command: str, options: list[str]
) -> tuple[list[str], Checkpoint | TrainingState | None]:
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
    given = "best" if given is None else given
    checkpoint = load_training_state(given) if is_fit else load_checkpoint(given)
    path = ["--ckpt_path", str(checkpoint.path), *([] if is_fit else ["--verbose", "false"])]
    if run := run_of(checkpoint.path):
        if run.config.resolve() not in given_configs(options):
            check_run_config(run.config)
        config = str(run.config)
    elif is_fit and {option.partition("=")[0] for option in options} & {"-c", "--config"}:
        return [*options, *path], checkpoint
    elif is_fit:
        raise UserError(
            f"{checkpoint.path} is not in a run folder: give the config to resume it with, "
            "--config FILE"
        )
    else:
        assert isinstance(checkpoint, Checkpoint)
        config = json.dumps(model_config(checkpoint, options))
    return ["--config", config, *options, *path], checkpoint


def model_config(checkpoint: Checkpoint, options: list[str]) -> dict[str, Any]:
    """Return the config to evaluate a model file that is not in a run folder.

    Its corpus is used only if that is a built-in one: a stranger's file must not name a path.

    Raises:
        UserError: if it was trained on another corpus, and none is given.
    """
    data = {name: checkpoint.data[name] for name in ("val_fraction",) if name in checkpoint.data}
    corpus, given = checkpoint.data.get("corpus"), {option.partition("=")[0] for option in options}
    if corpus in corpora.BUILT_IN:
        data["corpus"] = corpus
    elif not given & {"--data.corpus", "-c", "--config"}:
        raise UserError(
            f"{checkpoint.path} is not in a run folder and was trained on {corpus!r}: give the "
            "text to evaluate it on, --data.corpus FILE"
        )
    settings = {k: v for k, v in checkpoint.settings.items() if k != "vocabulary"}
    return {"model": settings, "data": data}


def check_run_config(config: Path) -> None:
    """Raise a ``UserError`` if the config in a run folder is more than settings.

    The folder may be from a stranger, and a config could import a module, read other configs, or
    write outside the folder.
    """
    way_out = f"if you trust it, repeat the command with --config {config}"
    try:
        texts = [t for entry in load_run_config(config).items() for t in strings(*entry)]
        reasons = [suspicious(name, text, config.parent) for name, text in texts]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = ascii(" ".join(str(error).split())[:100])[1:-1]
        raise UserError(f"{config} cannot be read as the config of a run ({reason})") from error
    if reason := next(filter(None, reasons), ""):
        raise UserError(f"{config} names {reason}: {way_out}")


def load_run_config(config: Path) -> dict[str, Any]:
    """Return the config in a run folder; raise ValueError if none was written so."""
    if not config.is_file() or config.stat().st_size > MAX_CONFIG:
        raise ValueError(f"it is no regular file of at most {MAX_CONFIG:,} bytes")
    text = config.read_text(encoding="utf-8")
    if sum(map(text.count, "[{?")) + text.count("- -") > MAX_NESTED:
        raise ValueError("it is nested too deeply")  # the parser would take hours
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("it has aliases")  # a few of them can stand for gigabytes
    content = load_yaml(text)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError("it has no sections")
    if any(len(name) > MAX_TEXT for name in flatten(content)):
        raise ValueError("the name of a setting is too long")
    if "config" in content:
        raise ValueError("it includes another config")
    for name in ("trainer", "model", "data", "callbacks"):
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f"{name} is not a section")
    return content


def suspicious(name: str, text: str, folder: Path) -> str:
    """Return what a text in the config of a run stands for, if it is more than a value."""
    if len(text) > MAX_TEXT and name != "data.vocabulary":
        return f"a text of {len(text):,} characters"
    if name.startswith(PLAIN) or name.rpartition(".")[2] == "save_dir":  # resume replaces it
        return ""
    is_class, is_path = name.endswith("class_path"), DOTTED.fullmatch(text) is not None
    if (is_class and not text.startswith(TRUSTED)) or (is_path and not is_class):
        return f"the class {text!r}, which is imported only from a config that you give"
    if not is_class and isinstance(load_yaml(text), dict | list):
        return f"settings in the text {text!r}"
    path = Path(text).expanduser()
    if path.is_absolute() or ".." in path.parts or "://" in text:
        return f"a place outside the folder of the run, {text!r}"
    if any((base / path).is_file() for base in (folder, Path.cwd())):
        return f"the file {text!r}"
    return ""


def strings(name: str, value: Any) -> list[tuple[str, str]]:
    """Return all strings in nested lists and dictionaries, with their full names."""
    if isinstance(value, list):
        return [found for entry in value for found in strings(name, entry)]
    if isinstance(value, dict):
        return [f for key, entry in value.items() for f in strings(f"{name}.{key}", entry)]
    return [(name, value)] if isinstance(value, str) else []


def given_configs(options: list[str]) -> set[Path]:
    """Return the paths of the configs in the options."""
    paths = set()
    for previous, option in zip(["", *options], options, strict=False):
        name, equals, value = option.partition("=")
        if equals and name in ("-c", "--config"):
            paths.add(Path(value).resolve())
        elif previous in ("-c", "--config"):
            paths.add(Path(option).resolve())
    return paths


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
