"""Imports go one way, help is light, and modules and functions are short."""

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

# what each package, or top-level module, may import of the others
BASE = {
    "atomic",
    "errors",
    "hardware",
    "notices",
    "option_errors",
    "processes",
    "resources",
    "runs",
}
MAY_IMPORT: dict[str, set[str]] = {
    **{name: set[str]() for name in sorted(BASE)},
    "resources": {"errors"},
    "option_errors": {"errors"},
    "runs": {"errors", "notices"},
    "models": {"errors"},
    "kernels": {"errors", "models"},
    "text": {"atomic", "errors", "notices"},
    "__main__": {"commands", "errors", "notices", "processes", "resources"},
}
MAY_IMPORT["generation"] = BASE | {"models", "kernels", "text"}
MAY_IMPORT["insight"] = MAY_IMPORT["generation"] | {"generation"}
MAY_IMPORT["training"] = MAY_IMPORT["insight"] | {"insight"}
MAY_IMPORT["commands"] = MAY_IMPORT["training"] | {"training"}
FILES_OF: dict[str, list[Path]] = {package: [] for package in MAY_IMPORT}
for path in MODULES:
    FILES_OF.setdefault(path.relative_to(PACKAGE).with_suffix("").parts[0], []).append(path)
LIGHT = (*sorted(BASE), "commands.main")  # help and mistakes need no torch

IMPORT_ALONE = """
import importlib, json, pkgutil, sys
found = {}
for name in json.loads(sys.argv[1]):
    for loaded in [module for module in sys.modules if module.split(".")[0] == "nanogpt"]:
        del sys.modules[loaded]
    package = importlib.import_module(f"nanogpt.{name}")
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"nanogpt.{name}."):
        importlib.import_module(module.name)
    found[name] = sorted(sys.modules)
print(json.dumps(found))
"""


def imports(path: Path) -> list[str]:
    """Return the full names of all modules that a file imports, inside functions too."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides its package"
            # `from nanogpt import errors` and `from nanogpt.errors import UserError` alike
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def packages(modules: list[str]) -> set[str]:
    """Return the packages and top-level modules of this project among modules."""
    parts = [module.split(".") for module in modules]
    return {part[1] for part in parts if part[0] == "nanogpt" and len(part) > 1}


@cache
def loaded() -> dict[str, set[str]]:
    """Return the contents of `sys.modules` after importing each package alone, light ones first."""
    names = [*LIGHT, *(name for name in MAY_IMPORT if name not in BASE)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALONE, json.dumps(names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}


def test_every_file_belongs_to_a_package() -> None:
    assert FILES_OF.keys() == MAY_IMPORT.keys() | {"__init__"}
    assert all(FILES_OF.values())


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    for path in FILES_OF[package]:
        assert packages(imports(path)) <= MAY_IMPORT[package] | {package, "__version__"}, path
    assert packages(list(loaded()[package])) <= MAY_IMPORT[package] | {package}


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if name != "training"])
def test_only_training_imports_lightning(package: str) -> None:
    for path in FILES_OF[package]:
        assert not [name for name in imports(path) if "lightning" in name.split(".")[0]], path
    if package not in ("commands", "__main__"):
        assert not {"lightning", "pytorch_lightning", "torchmetrics"} & loaded()[package]
    assert "lightning" in loaded()["training"]


def test_the_gpt_is_plain_torch() -> None:
    own = [name for name in imports(PACKAGE / "models" / "gpt.py") if name.startswith("nanogpt")]
    assert own == ["nanogpt.models.kv_cache.Cache", "nanogpt.models.kv_cache.LayerCache"]
    assert len((PACKAGE / "models" / "gpt.py").read_text(encoding="utf-8").splitlines()) <= 180


@pytest.mark.parametrize("name", LIGHT)
def test_help_and_errors_need_no_heavy_import(name: str) -> None:
    assert not {"torch", "numpy", "jsonargparse", "tensorboard"} & loaded()[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_modules_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) else node.body
            assert not body or node.end_lineno - body[0].lineno < 40, node.name
    assert path.stem not in ("utils", "common", "helpers", "misc")
    assert not [name for name in imports(path) if name.split(".")[0] in ("tests", "benchmarks")]
