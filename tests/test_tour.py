"""The notebook ``docs/tour.ipynb`` runs in a fresh kernel, and its committed outputs are clean."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from nanogpt.text.pastiche import pastiche

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
FEW_STEPS = "BIGRAM_STEPS = STAGE_STEPS = GPT_STEPS = 2"
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/(?:[\w.-]+/)+[\w.-]+|\b[A-Za-z]:\\\w")
MAX_PICTURE_BYTES = 60_000


def read_tour() -> Any:
    return nbformat.read(TOUR, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook: Any) -> str:
    """Return what the code cells print; fail if one has an error or writes to stderr."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    for output in outputs:
        assert output.output_type != "error", output
        assert output.get("name") != "stderr", output.text
    return "".join(output.text for output in outputs if output.output_type == "stream")


def pictures(notebook: Any) -> list[str]:
    """Return the pictures that the code cells draw, PNG in Base64."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


@pytest.fixture
def kernel_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that a kernel inherits: the package of this clone, and folders to write."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # another backend would draw no picture


@pytest.mark.usefixtures("kernel_environment")
@pytest.mark.filterwarnings("ignore:Proactor event loop")  # on Windows
def test_tour_runs_in_a_fresh_kernel(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(pastiche()[:50_000], encoding="utf-8")
    notebook = read_tour()
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    parameters.source += f'\nCORPUS = "text.txt"\n{FEW_STEPS}'
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    text = printed(notebook)
    assert text.count("True") == printed(read_tour()).count("True") == 5
    assert "False" not in text
    assert len(pictures(notebook)) == 2
    assert {path.name for path in tmp_path.iterdir() if path.suffix} == {"text.txt"}


def test_committed_outputs_are_complete() -> None:
    notebook = read_tour()
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert [len(pictures(notebook)), "Duke" in printed(notebook)] == [2, True]
    for picture in pictures(notebook):
        assert len(picture) * 3 / 4 < MAX_PICTURE_BYTES


def test_committed_outputs_hold_no_traces_of_a_machine() -> None:
    text = printed(read_tour())
    assert "Traceback" not in text
    assert "Warning" not in text
    assert "\r" not in text
    assert not ABSOLUTE_PATH.search(text)
    assert not ABSOLUTE_PATH.search(str([cell.metadata for cell in read_tour().cells]))


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("saved in /home/ada/run", True),
        (r"saved in C:\runs", True),
        ("https://example.org/a/b", False),
        ("docs/tour.ipynb", False),
        ("loss/train 2.1", False),
    ],
)
def test_absolute_paths_are_recognized(text: str, is_path: bool) -> None:
    assert bool(ABSOLUTE_PATH.search(text)) == is_path


def test_links_of_the_tour_resolve() -> None:
    source = "".join(cell.source for cell in read_tour().cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", source) if "://" not in link]
    assert len(links) > 5
    for link in links:
        assert (TOUR.parent / link).exists(), link
