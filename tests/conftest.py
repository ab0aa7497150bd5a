"""Each test runs in an empty folder, without a network, and finds no corpus but its own."""

import os
import signal
import sys
from pathlib import Path

import pytest

from nanogpt.commands.main import main, replace_missing_backend
from nanogpt.text import corpora
from nanogpt.text.pastiche import pastiche
from tests.command_lines import CONFIGS, TINY, Outcome, Run

replace_missing_backend()  # before any test imports lightning, which imports matplotlib
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # the tests were started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the compiler of all tests: in one of its own, each would compile all again."""
    session = tmp_path_factory.getbasetemp()
    return (session.parent if "PYTEST_XDIST_WORKER" in os.environ else session) / "compiled"


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled_kernels: Path) -> None:
    """Isolate a test from the machine's corpora, runs and network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NANOGPT_DATA_DIR", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled_kernels))
    monkeypatch.setattr(corpora, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(corpora, "URL", "https://127.0.0.1:1/unreachable.txt")
    monkeypatch.setattr(corpora, "RETRY_AFTER_SECONDS", ())


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The path of a text of 5,000 characters."""
    (tmp_path / "text.txt").write_text(pastiche()[:5000], encoding="utf-8")
    return "text.txt"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, as ``python cli.py`` does."""

    def run(*argv: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cli.py", *argv])
        capsys.readouterr()
        try:
            code = main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def fit(run: Run, text: str) -> Run:
    """Train a tiny GPT on a small text, without a model card; later options take precedence."""

    def fit(*options: str) -> Outcome:
        config = str(CONFIGS / "quickstart.yaml")
        small = (f"--data.corpus={text}", "--trainer.max_steps=6", "--trainer.val_check_interval=4")
        return run("fit", "--config", config, *TINY, *small, *options)

    return fit
