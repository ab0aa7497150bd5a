"""Imports go one way, rooms are light, and what is written fits on a page."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nanogpt"
MODULES = sorted(PACKAGE.rglob("*.py"))
FILES = [ROOT / "cli.py", *MODULES]

# What each room, or single module, may import of the others.
MAY_IMPORT: dict[str, set[str]] = {
    "atomic": set(),
    "errors": set(),
    "hardware": set(),
    "notices": set(),
    "parsing": set(),
    "runs": {"errors"},
    "models": {"errors"},
    "text": {"atomic", "errors", "notices"},
    "generation": {"atomic", "errors", "hardware", "notices", "parsing", "runs", "models", "text"},
    "cli": {"errors", "notices", "runs", "generation", "insight", "training"},
}
MAY_IMPORT["insight"] = MAY_IMPORT["generation"] | {"generation"}
MAY_IMPORT["training"] = MAY_IMPORT.keys() - {"cli"}
FILES_OF: dict[str, list[Path]] = {room: [] for room in MAY_IMPORT}
for path in MODULES:
    FILES_OF.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
LIGHT = ("atomic", "errors", "hardware", "notices", "parsing", "runs", "cli")  # help needs no torch

IMPORT_ALONE = """
import importlib, json, pkgutil, sys
found = {}
for room in json.loads(sys.argv[1]):
    for name in [name for name in sys.modules if name.split(".")[0] == "nanogpt"]:
        del sys.modules[name]
    package = importlib.import_module(f"nanogpt.{room}")
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"nanogpt.{room}."):
        importlib.import_module(module.name)
    found[room] = sorted(sys.modules)
print(json.dumps(found))
"""


def imports(path: Path) -> list[str]:
    """Full names of all modules that a file imports, within functions too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides which room it enters"
            # `from nanogpt import errors` and `from nanogpt.errors import UserError` alike
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def rooms(modules: list[str]) -> set[str]:
    """The rooms of this project among modules."""
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "nanogpt" and len(part) > 1}


@cache
def loaded() -> dict[str, set[str]]:
    """What is in `sys.modules` once all of a room, and nothing else, is imported; light first."""
    order = sorted(MAY_IMPORT, key=lambda room: (room not in LIGHT, room == "training"))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE, json.dumps(order)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {room: set(modules) for room, modules in json.loads(done.stdout).items()}


def test_every_file_belongs_to_a_room() -> None:
    assert FILES_OF.keys() == MAY_IMPORT.keys() | {"__init__"}
    assert all(FILES_OF.values())


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_names_only_the_rooms_below_it(room: str) -> None:
    for path in FILES_OF[room]:
        assert rooms(imports(path)) <= MAY_IMPORT[room] | {room}, path


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_alone_loads_only_the_rooms_below_it(room: str) -> None:
    assert rooms(list(loaded()[room])) <= MAY_IMPORT[room] | {room}


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if room != "training"])
def test_only_training_knows_lightning(room: str) -> None:
    for path in FILES_OF[room]:
        assert not [name for name in imports(path) if "lightning" in name.split(".")[0]], path
    assert not {"lightning", "pytorch_lightning", "torchmetrics"} & loaded()[room]
    assert "lightning" in loaded()["training"]


@pytest.mark.parametrize("room", LIGHT)
def test_help_and_mistakes_need_no_heavy_import(room: str) -> None:
    assert not {"torch", "numpy", "jsonargparse", "tensorboard"} & loaded()[room]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_module_is_short_and_says_in_its_name_what_it_is_about(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) < 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or node.end_lineno - body[0].lineno < 40, node.name
    assert path.stem not in ("utils", "common", "helpers", "misc")
    assert not [name for name in imports(path) if name.split(".")[0] in ("tests", "benchmarks")]
