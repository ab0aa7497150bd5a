"""The README and the documentation: examples run, links resolve, and the README stays short."""

import re
from pathlib import Path

import pytest

from nanogpt.resources import find_config
from tests.command_lines import Run

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
]
EACH_PAGE = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", read(page), flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_readme_has_at_most_8000_characters() -> None:
    assert len(read(ROOT / "README.md")) <= 8_000


@EACH_PAGE
def test_links_and_pictures_resolve(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", read(page))
    for target in map("".join, targets):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@EACH_PAGE
def test_configs_in_commands_exist(page: Path) -> None:
    for name in re.findall(r"--config[ =]([a-z]\S*[a-z0-9])", read(page)):
        assert Path(ROOT / find_config(name)).is_file()


def test_readme_shows_the_decoder_and_the_ladder() -> None:
    for picture in ("docs/decoder.svg", "docs/ladder.png"):
        assert picture in read(ROOT / "README.md")


def test_python_examples_run_in_order(fit: Run, capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", read(ROOT / "docs" / "python.md"), re.DOTALL)
    Path("text.txt").write_text("ROMEO: but soft, what light\n" * 200, encoding="utf-8")
    assert fit("--model.block_size=16").code == 0
    capsys.readouterr()
    names: dict[str, object] = {}
    exec(examples[0], names)
    assert len(capsys.readouterr().out) == 200
    for example in examples[1:]:
        exec(example, names)
    assert len(examples) == 4
