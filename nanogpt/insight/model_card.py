"""The model card of a finished run, ``card.md``."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from nanogpt.insight.memorization import NGRAM_SIZE, Overlap
from nanogpt.insight.ngrams import NGram
from nanogpt.notices import escape_controls

TEMPLATE = Template(Path(__file__).with_suffix(".md").read_text("utf-8"))


def render_card(
    title: str,
    facts: Mapping[str, str],
    losses: str,
    ngrams: Sequence[NGram],
    overlaps: Mapping[str, Overlap],
    sample: str,
    settings: Mapping[str, Any],
) -> str:
    """Return the card in Markdown, without control characters.

    ``losses`` is a table of the evaluations, ``overlaps`` are those of some texts with the train
    split, by the texts' names, and ``settings`` those that differ from their defaults.
    """
    rows = [
        (
            name,
            "–" if overlap.novel is None else f"{overlap.novel:.1%}",
            f"{len(overlap.longest)} characters: "
            f"<code>{html.escape(repr(overlap.longest), quote=False)}</code>",
        )
        for name, overlap in overlaps.items()
    ]
    novel = f"{NGRAM_SIZE}-grams not in the train split"
    card = TEMPLATE.substitute(
        title=title,
        facts=table(("", ""), [(f"**{name}**", fact) for name, fact in facts.items()]),
        losses=losses,
        ngrams=table(
            ("counts", "entropy of the train split", "loss on the val split"),
            [(n.name, f"{n.entropy:.4f}", f"{n.held_out:.4f}") for n in ngrams],
        ),
        overlaps=table(("text", novel, "longest substring of the train split"), rows),
        sample=sample.strip("\n").replace("```", "'''"),
        settings="\n".join(
            f"{name}: {json.dumps(value, default=str, ensure_ascii=False)}"
            for name, value in settings.items()
        ),
    )
    return escape_controls(card)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, with ``|`` and line breaks in cells escaped."""
    cells = [[cell.replace("|", "&#124;").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *cells])
