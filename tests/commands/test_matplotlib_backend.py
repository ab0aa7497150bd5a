"""Commands run with the ``MPLBACKEND`` of a notebook, whose module may not be installed here."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from nanogpt.commands.main import replace_missing_backend
from nanogpt.text.pastiche import pastiche

ROOT = Path(__file__).parents[2]
NOTEBOOK = "module://matplotlib_inline.backend_inline"


def run_python(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process that a notebook started."""
    environment = {**os.environ, "MPLBACKEND": NOTEBOOK, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *argv]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(find_spec("matplotlib_inline") is not None, reason="the backend is installed")
def test_missing_backend_breaks_the_import_of_matplotlib() -> None:
    done = run_python("-c", "import torchmetrics")
    assert done.returncode != 0
    assert "is not a valid value for backend" in done.stderr


def test_help_of_fit() -> None:
    done = run_python(str(ROOT / "cli.py"), "fit", "--help")
    assert done.returncode == 0, done.stderr
    assert "--trainer.max_steps" in done.stdout


def test_commands(tmp_path: Path) -> None:
    """Runs all commands in one process, since each process imports PyTorch for seconds."""
    (tmp_path / "text.txt").write_text(pastiche()[:5000], encoding="utf-8")
    small = ["--data.corpus=text.txt", "--data.batch_size=2", "--trainer.max_steps=1"]
    command_lines = [
        ["fit", "--config=01_bigram", *small],  # with its card and pictures
        ["validate"],
        ["predict", "--max_new_tokens=1"],
        ["score", "--text=text.txt", "--html=page.html"],
        ["ladder", "--stages=1", *small, "--card=false"],
    ]
    code = "from nanogpt.commands.main import main\n"
    done = run_python("-c", code + "".join(f"assert main({argv}) == 0\n" for argv in command_lines))
    assert done.returncode == 0, done.stderr
    for picture in ("version_0/curves.png", "ladder/version_0/ladder.png"):
        assert (tmp_path / "lightning_logs" / picture).is_file()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("module://missing.backend_inline", "agg"),
        ("module://", "agg"),
        ("module://json.tool", "module://json.tool"),  # it is installed
        ("TkAgg", "TkAgg"),
        ("", ""),
        (None, None),
    ],
)
def test_only_a_missing_backend_is_replaced(
    backend: str | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)
    if backend is not None:
        monkeypatch.setenv("MPLBACKEND", backend)
    replace_missing_backend()
    assert os.environ.get("MPLBACKEND") == expected


def test_importing_the_library_does_not_change_the_backend() -> None:
    code = (
        "import os, nanogpt, nanogpt.commands.main\n"
        "nanogpt.generate\n"
        f"assert os.environ['MPLBACKEND'] == {NOTEBOOK!r}\n"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
