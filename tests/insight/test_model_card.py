"""A card is valid Markdown whatever its run wrote and copied."""

import json
import re
from typing import Any

import pytest
import yaml

from nanogpt.insight.model_card import Card
from nanogpt.insight.memorization import Copied
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses

HOSTILE = ["a|b", "|", "||a|", "\\|", "\\", "a\nb", "\r\n", "`", "a`b``c", "``|`\n|", "{x}", ""]


def card(**changed: Any) -> str:
    plain: dict[str, Any] = {
        "title": "version_0",
        "facts": {"best val loss": "1.5000 nats per character", "corpus": "some"},
        "history": [Losses(0, 4.2, 4.3), Losses(500, 2.5, 2.6)],
        "beside": "",
        "ngrams": [NGram(1, 3.3, 3.4), NGram(2, 2.4519, 2.4824)],
        "samples": ["To be\nor not", "second"],
        "copied": Copied("to be", 0.25),
        "held_out": ["the val", "split"],
        "copied_held_out": Copied("the ", None),
        "settings": {"model.n_layer": 3, "model.parts": ["mean"], "data.corpus": "my.txt"},
    }
    return Card(**{**plain, **changed}).markdown()


def fenced(page: str) -> dict[str, str]:
    """The text in each fence by the heading before it, as Markdown reads it line by line."""
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
    assert fence is None, "a fence is never closed"
    return found


def tables(page: str) -> list[list[list[str]]]:
    """All tables, as cells; a backslash takes away what the character after it means."""
    blocks = [block.split("\n") for block in page.split("\n\n") if block.startswith("|")]
    return [
        [re.findall(r"(?:\\.|[^|\\])+", row.strip()[1:-1]) for row in block] for block in blocks
    ]


def test_it_says_what_there_is_to_say() -> None:
    page = card()
    assert page.startswith("# version_0\n")
    assert "| **best val loss** | 1.5000 nats per character |" in page
    assert "| bigram | 2.4519 | 2.4824 |" in page
    assert "| 18 characters in 2 samples | 25.0% | 5 characters: <code>'to be'</code> |" in page
    assert (
        "| 12 characters of the val split, in such pieces | – | 4 characters: <code>'the '</code> |"
        in page
    )


def test_losses_stand_beside_the_references_where_there_is_one() -> None:
    assert fenced(card())["Losses"].split("\n")[1:] == [
        "     0   4.2000   4.3000",
        "   500   2.5000   2.6000",
    ]
    page = card(beside="step 0: 1 and 1")
    assert fenced(page)["Expected and observed"] == "step 0: 1 and 1"
    assert "## Losses" not in page


@pytest.mark.parametrize("longest", HOSTILE)
def test_every_row_has_as_many_cells_as_its_titles(longest: str) -> None:
    copied = Copied(longest, 0.5)
    found = tables(card(facts={"corpus": longest}, copied=copied, copied_held_out=copied))
    assert [len(table) for table in found] == [3, 4, 4]
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}


@pytest.mark.parametrize("longest", HOSTILE)
def test_the_longest_stretch_is_counted_as_it_is(longest: str) -> None:
    page = card(copied=Copied(longest, 0.5))
    assert f"| 50.0% | {len(longest)} characters: <code>" in page


@pytest.mark.parametrize(
    "sample", ["a\n```\nb", "```", "`````", "``\n`", "a\n   ````\n# not a heading", "~~~\na"]
)
def test_no_sample_ends_its_fence(sample: str) -> None:
    read = fenced(card(samples=[sample]))
    assert list(read) == ["Losses", "A sample", "Settings"]
    assert read["A sample"] == sample.replace("```", "'''")


def test_a_setting_cannot_end_its_fence() -> None:
    read = fenced(card(settings={"data.corpus": "a\n```\nb"}))
    assert read["Settings"] == 'data.corpus: "a\\n```\\nb"'


def test_braces_and_unicode_survive() -> None:
    sample = "é {settings} 🎭 {0} \u2028 日本"
    page = card(samples=[sample], copied=Copied("🎭é", 0.5))
    assert fenced(page)["A sample"] == sample
    assert "2 characters: <code>'🎭é'</code>" in page


def test_settings_can_be_read_back() -> None:
    settings = {
        "model.parts": ["attention", "norm"],
        "model.head_size": None,
        "model.learning_rate": 3e-4,
        "data.corpus": "a: {b} # c | d é 🎭",
    }
    read = yaml.safe_load(fenced(card(settings=settings))["Settings"])
    assert json.loads(json.dumps(read)) == settings
