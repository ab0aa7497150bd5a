"""How configs are read and written: YAML, with two additions.

``TensorBoardLogger`` and ``CSVLogger`` require a ``save_dir``; so that a class name is enough, it
is filled in where it is missing, in options and in configs. A file name that is not valid UTF-8,
which YAML cannot contain, is written as binary data.
"""

import base64
import os
from contextlib import suppress
from enum import Enum
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader, set_parsing_settings

PARSER_MODE = "nanogpt"
SAVE_DIR = ""  # stands for --trainer.default_root_dir; see place_loggers
FILE_LOGGERS = ("TensorBoardLogger", "CSVLogger")


def register_parser_mode() -> None:
    """Register the parser mode: YAML, in which the loggers of a config are completed.

    This also lets jsonargparse refuse class paths that run commands, such as ``os.system``.
    """
    set_parsing_settings(import_path_denylist=[])
    set_loader(PARSER_MODE, load_yaml, (yaml.YAMLError,))
    set_dumper(PARSER_MODE, dump_yaml)


class Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Dumps members of enumerations by their values, as in the options of ``Timer``."""


Dumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))


def represent_text(dumper: Dumper, text: str) -> yaml.Node:
    """Represent a text, or a file name that is not valid UTF-8 by its bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        content = base64.b64encode(os.fsencode(text)).decode()
        return dumper.represent_scalar("tag:yaml.org,2002:binary", content)
    return dumper.represent_str(text)


Dumper.add_representer(str, represent_text)


def dump_yaml(settings: Any) -> str:
    """Return settings as YAML."""
    return str(yaml.dump(settings, Dumper=Dumper, sort_keys=False, allow_unicode=True))


def load_yaml(text: str) -> Any:
    """Load a value or a config."""
    content = get_loader("yaml")(text)
    with suppress(RecursionError):  # an anchor in itself; jsonargparse will refuse it
        content = decode_names(content)
    trainer = content.get("trainer") if isinstance(content, dict) else None
    if isinstance(trainer, dict) and "logger" in trainer:
        trainer["logger"] = with_save_dir(trainer["logger"])
    return content


def decode_names(content: Any) -> Any:
    """Return the content of a config with file names instead of their bytes."""
    if isinstance(content, dict):
        return {key: decode_names(value) for key, value in content.items()}
    if isinstance(content, list):
        return [decode_names(value) for value in content]
    return os.fsdecode(content) if isinstance(content, bytes) else content


def with_save_dir(setting: Any) -> Any:
    """Return the setting of one logger or several, each with a ``save_dir`` if it needs one."""
    if isinstance(setting, list):
        return [with_save_dir(entry) for entry in setting]
    entry = {"class_path": setting} if isinstance(setting, str) else setting
    if not isinstance(entry, dict):
        return setting
    if str(entry.get("class_path")).rpartition(".")[2] not in FILE_LOGGERS:
        return setting
    arguments = entry.get("init_args") or {}
    return {**entry, "init_args": {"save_dir": SAVE_DIR, **arguments}}


def complete_options(argv: list[str]) -> list[str]:
    """Return the options, with complete loggers."""
    completed: list[str] = []
    names = ("--trainer.logger", "--trainer.logger+")
    for previous, option in zip(["", *argv], argv, strict=False):
        name, equals, value = option.partition("=")
        if equals and name in names:
            option = f"{name}={complete_value(value)}"
        elif previous in names and not option.startswith("-"):
            option = complete_value(option)
        completed.append(option)
    return completed


def complete_value(value: str) -> str:
    """Return the value of an option, with complete loggers."""
    try:
        setting = yaml.safe_load(value)
    except yaml.YAMLError:
        return value  # jsonargparse will refuse it
    completed = with_save_dir(setting)
    return (
        value if completed == setting else str(yaml.safe_dump(completed, default_flow_style=True))
    )
