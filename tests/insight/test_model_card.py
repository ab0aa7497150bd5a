"""A card is valid Markdown for any samples, facts and settings."""

import json
import re
from typing import Any

import pytest
import yaml

from nanogpt.insight.memorization import Overlap
from nanogpt.insight.model_card import render_card
from nanogpt.insight.ngrams import NGram

HOSTILE = ["a|b", "|", "||a|", "\\|", "\\", "a\nb", "\r\n", "`", "a`b``c", "``|`\n|", "{x}", ""]


def card(**changed: Any) -> str:
    plain: dict[str, Any] = {
        "title": "version_0",
        "facts": {"best val loss": "1.5000 nats per character", "corpus": "some"},
        "losses": "  step    train      val\n     0   4.2000   4.3000",
        "ngrams": [NGram(1, 3.3, 3.4), NGram(2, 2.4519, 2.4824)],
        "overlaps": {"2 samples": Overlap("to be", 0.25), "the val split": Overlap("the ", None)},
        "sample": "To be\nor not",
        "settings": {"model.n_layer": 3, "model.parts": ["mean"], "data.corpus": "my.txt"},
    }
    return render_card(**{**plain, **changed})


def fenced(page: str) -> dict[str, str]:
    """The text of each fenced block by its heading, parsed line by line as Markdown does."""
    found, heading, fence = {}, "", None
    for line in re.split(r"\r\n|\r|\n", page):
        if fence is None and line.startswith("```"):
            fence = []
        elif fence is not None and re.fullmatch(r" {0,3}`{3,}\s*", line):
            found[heading], fence = "\n".join(fence), None
        elif fence is not None:
            fence.append(line)
        elif line.startswith("## "):
            heading = line[3:]
    assert fence is None, "a fenced block is not closed"
    return found


def tables(page: str) -> list[list[list[str]]]:
    """The cells of all tables; a backslash escapes the next character."""
    blocks = [block.split("\n") for block in page.split("\n\n") if block.startswith("|")]
    return [
        [re.findall(r"(?:\\.|[^|\\])+", row.strip()[1:-1]) for row in block] for block in blocks
    ]


def test_contains_all_results() -> None:
    page = card()
    assert page.startswith("# version_0\n")
    assert "| **best val loss** | 1.5000 nats per character |" in page
    assert "| bigram | 2.4519 | 2.4824 |" in page
    assert "| 2 samples | 25.0% | 5 characters: <code>'to be'</code> |" in page
    assert "| the val split | – | 4 characters: <code>'the '</code> |" in page
    assert fenced(page)["Losses"] == "  step    train      val\n     0   4.2000   4.3000"


@pytest.mark.parametrize("longest", HOSTILE)
def test_every_table_row_has_the_same_number_of_cells(longest: str) -> None:
    overlap = Overlap(longest, 0.5)
    found = tables(card(facts={"corpus": longest}, overlaps={"1": overlap, "2": overlap}))
    assert [len(table) for table in found] == [3, 4, 4]
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


@pytest.mark.parametrize("longest", HOSTILE)
def test_length_of_the_longest_substring_ignores_escapes(longest: str) -> None:
    page = card(overlaps={"samples": Overlap(longest, 0.5)})
    assert f"| 50.0% | {len(longest)} characters: <code>" in page


@pytest.mark.parametrize(
    "sample", ["a\n```\nb", "```", "`````", "``\n`", "a\n   ````\n# not a heading", "~~~\na"]
)
def test_sample_cannot_close_its_block(sample: str) -> None:
    blocks = fenced(card(sample=sample))
    assert list(blocks) == ["Losses", "Sample", "Settings"]
    assert blocks["Sample"] == sample.replace("```", "'''")


def test_setting_cannot_close_its_block() -> None:
    blocks = fenced(card(settings={"data.corpus": "a\n```\nb"}))
    assert blocks["Settings"] == 'data.corpus: "a\\n```\\nb"'


def test_control_characters_are_escaped() -> None:
    hostile = "\x1b[31m\x07\x9b"
    page = card(
        title=hostile,
        facts={"corpus": hostile},
        sample=f"a\tb{hostile}\x7f",
        overlaps={hostile: Overlap(hostile, None)},
        settings={"data.corpus": hostile},
    )
    assert page.count("31m") == 6
    assert {c for c in page if ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0} == {"\n", "\t"}


def test_placeholders_and_unicode_are_kept() -> None:
    sample = "é {settings} 🎭 $facts ${0} $$ \u2028 日本"
    page = card(sample=sample, overlaps={"samples": Overlap("🎭é", 0.5)})
    assert fenced(page)["Sample"] == sample
    assert "2 characters: <code>'🎭é'</code>" in page


def test_settings_are_valid_yaml() -> None:
    settings = {
        "model.parts": ["attention", "norm"],
        "model.head_size": None,
        "model.learning_rate": 3e-4,
        "data.corpus": "a: {b} # c | d é 🎭",
    }
    read = yaml.safe_load(fenced(card(settings=settings))["Settings"])
    assert json.loads(json.dumps(read)) == settings
