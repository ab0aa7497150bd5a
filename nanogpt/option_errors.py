"""jsonargparse's errors, in one line that names the nearest valid option."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

REWORDED = {
    r"argument (?:-\w/)?(--\S+): expected one argument": (
        r"\1 takes a value: write \1=VALUE if that begins with a dash"
    ),
    r'Key "(\w+)\.\w+" not found in namespace': (
        r"\1 takes settings: write them, indented, below `\1:`"
    ),
    r"Unexpected config: (.*)": (
        r"a config takes settings below `model:`, `data:` or `trainer:`, not '\1'"
    ),
}

ROOMS = ("model", "data", "trainer")


def explain(message: str, options: Iterable[str]) -> str:
    """Turn a parser's message into one line.

    Args:
        message: of jsonargparse's or argparse's ``ArgumentError``.
        options: the valid keys, such as ``model.n_layer``.
    """
    if found := re.search(r"unrecognized arguments: (.*)", message):
        unknown = found[1].split()[0].split("=")[0]
        if not unknown.startswith("-"):
            return f"unexpected argument {unknown!r}; options are written --name value"
        return f"unknown option {unknown}{_nearest(unknown.lstrip('-'), options, '--')}"
    if found := re.search(r"does not accept (?:nested key|option|key) '([^']*)'", message):
        return f"unknown setting {found[1]} in the config{_nearest(found[1], options, '')}"
    if found := re.search(r'Parser key "([^"]*)":\s*(.*)', message, re.DOTALL):
        return _about(found[1], found[2])
    for pattern, words in REWORDED.items():
        if found := re.search(pattern, message):
            return found.expand(words)
    return _one_line(message)


def _about(key: str, detail: str) -> str:
    """Say what is wrong with the value of a setting."""
    if "Unable to load config" in detail and key in ROOMS:
        return f"{key} takes settings: give them one by one, --{key}.NAME VALUE"
    if found := re.search(r"Problem with given class_path '(?:.*\.)?(.*)':\s*(.*)", detail):
        return f"{key}: {found[1]}: {found[2]}"
    if found := re.search(r"Expected a dot import path string: (.*)", detail):
        return f"{key}: there is no {found[1]!r}"
    given = re.findall(r"(?:Given value|Got value): (.*)", detail)
    expected = [
        _plain(kind)
        for kind in re.findall(r"Expected an? (?!path but)(.*?)(?:\. Got|$)", detail, re.M)
    ]
    if given and expected:
        return f"{key} cannot be {given[-1]!r}; it takes {' or '.join(dict.fromkeys(expected))}"
    return f"{key}: {_one_line(detail)}"


def _nearest(unknown: str, options: Iterable[str], prefix: str) -> str:
    options, name = list(options), unknown.rsplit(".", 1)[-1]
    last = {option.rsplit(".", 1)[-1]: option for option in reversed(options)}
    if name in last:  # trainer.n_layer for model.n_layer
        return f"; did you mean {prefix}{last[name]}?"
    near = get_close_matches(unknown, options, 1, 0.6)
    if not near:  # n_layr for model.n_layer
        near = [last[n] for n in get_close_matches(name, last, 1, 0.7)]
    return f"; did you mean {prefix}{near[0]}?" if near else "; see --help for all of them"


def _plain(kind: str) -> str:
    """``<class 'int'>`` is ``int``, ``typing.Literal['a', 'b']`` is ``a, b`` and so on."""
    if found := re.match(r"<class '(?:.*\.)?([^'.]*)'>", kind):
        return {"NoneType": "null", "list": "a list: [ONE, OTHER]"}.get(found[1], found[1])
    return re.sub(r"(?:typing\.)?Literal\[(.*)\]", r"\1", kind).replace("'", "")


def _one_line(message: str) -> str:
    return re.sub(r"\s+", " ", message).strip()
