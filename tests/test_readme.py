"""What the README prints runs as it is printed there."""

import re
from pathlib import Path

import pytest

from tests.command_lines import Run

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_library_example_streams_text(fit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    Path("text.txt").write_text("ROMEO: but soft, what light\n" * 200, encoding="utf-8")
    assert fit().code == 0
    capsys.readouterr()
    exec(example, {})
    assert len(capsys.readouterr().out) == 200


def test_every_picture_is_there() -> None:
    root = Path(__file__).parents[1]
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)|<img src=\"([^\"]+)\"", README)
    assert len(pictures) >= 6
    for found in pictures:
        assert (root / "".join(found)).is_file()
