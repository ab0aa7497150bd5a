"""Turn the errors of jsonargparse into one line that names the closest valid option."""

import re
from argparse import ArgumentError
from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from nanogpt.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

REWORDED = {
    r"arguments are required: text$": (
        "--text is required: write --text FILE, or --text - for standard input"
    ),
    r"argument (?:-\w/)?(--\S+): expected one argument": (
        r"\1 takes a value: write \1=VALUE if it begins with a dash"
    ),
    r'Key "(\w+)\.\w+" not found in namespace': (
        r"\1 is a section of settings: write them, indented, below `\1:`"
    ),
    r"argument ([\w.]+) --> ([\w.]+): ": r"\2 is derived from \1: set that instead",
    r"Unexpected config: (.*)": (
        r"a config has the sections `model:`, `data:` and `trainer:`, and cannot be '\1'"
    ),
}

SECTIONS = ("model", "data", "trainer")


def parse_options(parser: "ArgumentParser", options: list[str]) -> dict[str, Any]:
    """Parse the options of a command; raise a one-line UserError if they are not valid."""
    try:
        return parser.parse_args(options).as_dict()
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults().keys())) from error


def explain(message: str, options: Iterable[str]) -> str:
    """Return a parser's error message as one line that says what to do.

    Args:
        message: text of an ``ArgumentError`` of jsonargparse or argparse.
        options: the valid options, such as ``model.n_layer``.
    """
    if found := re.search(r"unrecognized arguments: (.*)", message):
        unknown = found[1].split()[0].split("=")[0]
        if not unknown.startswith("-"):
            return f"unexpected argument {unknown!r}; options are written --name value"
        return f"unknown option {unknown}{_suggestion(unknown.lstrip('-'), options, '--')}"
    if found := re.search(r"does not accept (?:nested key|option|key) '([^']*)'", message):
        return f"unknown setting {found[1]} in the config{_suggestion(found[1], options, '')}"
    if found := re.search(r'Parser key "([^"]*)":\s*(.*)', message, re.DOTALL):
        return _explain_value(found[1], found[2])
    for pattern, template in REWORDED.items():
        if found := re.search(pattern, message):
            return found.expand(template)
    return _one_line(message)


def _explain_value(key: str, detail: str) -> str:
    """Return what is wrong with the value of a setting, and which values it takes."""
    if "Unable to load config" in detail and key in SECTIONS:
        return f"{key} is a section of settings: set them one by one, --{key}.NAME VALUE"
    if found := re.search(r"Problem with given class_path '(?:.*\.)?(.*)':\s*(.*)", detail):
        return f"{key}: {found[1]}: {found[2]}"
    if found := re.search(r"Expected a dot import path string: (.*)", detail):
        return f"{key}: there is no class {found[1]!r}"
    given = re.findall(r"(?:Given value|Got value): (.*)", detail)
    expected = [
        _type_name(kind)
        for kind in re.findall(r"Expected an? (?!path but)(.*?)(?:\. Got|$)", detail, re.M)
    ]
    if given and expected:
        return f"{key} cannot be {given[-1]!r}; it takes {' or '.join(dict.fromkeys(expected))}"
    return f"{key}: {_one_line(detail)}"


def _suggestion(unknown: str, options: Iterable[str], prefix: str) -> str:
    """Return a hint that names the closest option, by its full name or its last part."""
    options, name = list(options), unknown.rsplit(".", 1)[-1]
    by_last_part = {option.rsplit(".", 1)[-1]: option for option in reversed(options)}
    if name in by_last_part:  # trainer.n_layer for model.n_layer
        return f"; did you mean {prefix}{by_last_part[name]}?"
    close = get_close_matches(unknown, options, 1, 0.6)
    if not close:  # n_layr for model.n_layer
        close = [by_last_part[n] for n in get_close_matches(name, by_last_part, 1, 0.7)]
    return f"; did you mean {prefix}{close[0]}?" if close else "; see --help for all of them"


def _type_name(kind: str) -> str:
    """Return ``int`` for ``<class 'int'>``, ``a, b`` for ``typing.Literal['a', 'b']`` and so on."""
    if found := re.match(r"<class '(?:.*\.)?([^'.]*)'>", kind):
        return {"NoneType": "null", "list": "a list: [ONE, OTHER]"}.get(found[1], found[1])
    return re.sub(r"(?:typing\.)?Literal\[(.*)\]", r"\1", kind).replace("'", "")


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
