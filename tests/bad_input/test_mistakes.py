"""Every mistake in a command line or a config gets one line that says what to do."""

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
    for line, says in command_lines.FIT:
        yield ("fit", "--config=base.yaml", *options(line)), says
    for command in ("predict", "score", "validate", "ladder"):
        for line, says in getattr(command_lines, command.upper()):
            yield (command, *options(line)), says
    for line, says in command_lines.OTHER:
        yield tuple(shlex.split(line)), says


CASES = list(lines())


def test_the_lists_are_long() -> None:
    assert len(CASES) + len(CONFIGS) >= 400


def check(run: Run, folder: Path, argv: Iterable[str], says: str) -> None:
    before = sorted(folder.glob("*")) + sorted(folder.glob("lightning_logs/*"))
    outcome = run(*argv)
    assert outcome.code == 2, outcome.out + outcome.err
    assert is_one_line(outcome.err), outcome.err
    assert len(outcome.err) < 600
    assert says in outcome.err
    after = sorted(folder.glob("*")) + sorted(folder.glob("lightning_logs/*"))
    assert after == before  # nothing ran


@pytest.mark.parametrize(("argv", "says"), CASES, ids=str)
def test_command_line(run: Run, workplace: Path, argv: tuple[str, ...], says: str) -> None:
    check(run, workplace, argv, says)


@pytest.mark.parametrize("name", CONFIGS)
def test_config(run: Run, workplace: Path, tmp_path: Path, name: str) -> None:
    content, says = CONFIGS[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    check(run, workplace, ["fit", "--config=base.yaml", f"--config={path}"], says)
