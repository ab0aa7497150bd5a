"""Every mistake in a command line or a config gets a one-line error that says what to do."""

import shlex
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.bad_input import command_lines
from tests.bad_input.configs import CONFIGS
from tests.command_lines import Run, is_one_line


def options(line: str) -> list[str]:
    return line.split(" ") if "{" in line else shlex.split(line)


def lines() -> Iterable[tuple[tuple[str, ...], str]]:
    for line, expected in command_lines.FIT:
        yield ("fit", "--config=base.yaml", *options(line)), expected
    for command in ("predict", "score", "validate", "ladder"):
        for line, expected in getattr(command_lines, command.upper()):
            yield (command, *options(line)), expected
    for line, expected in command_lines.OTHER:
        yield tuple(shlex.split(line)), expected


CASES = list(lines())


def test_number_of_cases() -> None:
    assert len(CASES) + len(CONFIGS) >= 400


def check(run: Run, folder: Path, argv: Iterable[str], expected: str) -> None:
    before = sorted(folder.glob("*")) + sorted(folder.glob("lightning_logs/*"))
    outcome = run(*argv)
    assert outcome.code == 2, outcome.out + outcome.err
    assert is_one_line(outcome.err), outcome.err
    assert len(outcome.err) < 600
    assert expected in outcome.err
    after = sorted(folder.glob("*")) + sorted(folder.glob("lightning_logs/*"))
    assert after == before  # no run was started


@pytest.mark.parametrize(("argv", "expected"), CASES, ids=str)
def test_command_line_with_a_mistake(
    run: Run, workplace: Path, argv: tuple[str, ...], expected: str
) -> None:
    check(run, workplace, argv, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_config_with_a_mistake(run: Run, workplace: Path, tmp_path: Path, name: str) -> None:
    content, expected = CONFIGS[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check(run, workplace, ["fit", "--config=base.yaml", f"--config={path}"], expected)
