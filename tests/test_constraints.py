"""The versions of constraints.txt are exact, and allowed by pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = dict(line.split("==") for line in LINES if not line.startswith("#"))


def test_every_version_is_exact() -> None:
    for name, version in PINS.items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), name
    assert list(PINS) == sorted(PINS)


def test_builds_that_differ_between_machines_are_left_out() -> None:
    left_out = [name for name in PINS if name == "torch" or name.startswith(("nvidia-", "cuda-"))]
    assert left_out == []


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_pinned_version_is_allowed(requirement: Requirement) -> None:
    if requirement.name != "torch":
        assert PINS[requirement.name] in requirement.specifier


@pytest.mark.parametrize(
    ("name", "vulnerable"),
    [
        ("filelock", "3.20.2"),  # CVE-2026-22701
        ("requests", "2.32.3"),  # CVE-2024-47081
        ("tqdm", "4.66.2"),  # CVE-2024-34062
        ("urllib3", "2.6.2"),  # CVE-2026-21441
        ("torch", "2.9.1"),  # CVE-2026-24747
        ("lightning", "2.6.3"),  # a malicious release
    ],
)
def test_vulnerable_version_is_not_allowed(name: str, vulnerable: str) -> None:
    (requirement,) = [requirement for requirement in REQUIREMENTS if requirement.name == name]
    assert vulnerable not in requirement.specifier
