"""A run on one page: ``card.md``."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanogpt.insight.memorising import GRAM, Copied
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses

PAGE = """\
# {title}

![losses over the steps, and by position in the context](curves.png)

{facts}

## {losses_title}

{losses}

## What counting achieves

Losses of n-gram counts, in nats per character; a model that sees no more than they do cannot get
below the first on the train split.

{ngrams}

## Is it memorising?

{copied}

## A sample

```text
{sample}
```

## Settings

All others are at their defaults; `config.yaml` has every one.

```yaml
{settings}
```
"""


@dataclass(frozen=True)
class Card:
    """What there is to say of a finished run.

    ``beside`` is the table of observed and expected losses, or empty where there is no
    reference; ``copied`` is of the samples, ``copied_held_out`` of pieces of the val split.
    """

    title: str
    facts: Mapping[str, str]
    history: Sequence[Losses]
    beside: str
    ngrams: Sequence[NGram]
    samples: Sequence[str]
    copied: Copied
    held_out: Sequence[str]
    copied_held_out: Copied
    settings: Mapping[str, Any]

    def markdown(self) -> str:
        """Return the page."""
        rows = [f"{row.step:6d} {row.train:8.4f} {row.val:8.4f}" for row in self.history]
        losses = self.beside or "\n".join(["  step    train      val", *rows])
        return PAGE.format(
            title=self.title,
            facts=table(("", ""), [(f"**{name}**", fact) for name, fact in self.facts.items()]),
            losses_title="Expected and observed" if self.beside else "Losses",
            losses=f"```text\n{losses}\n```",
            ngrams=table(
                ("counts", "entropy of the train split", "loss on the val split"),
                [(n.name, f"{n.entropy:.4f}", f"{n.held_out:.4f}") for n in self.ngrams],
            ),
            copied=self._copied(),
            sample=self.samples[0].strip("\n").replace("```", "'''"),
            settings="\n".join(
                f"{name}: {json.dumps(v, default=str, ensure_ascii=False)}"
                for name, v in self.settings.items()
            ),
        )

    def _copied(self) -> str:
        about = (
            f"{sum(map(len, self.samples)):,} characters in {len(self.samples)} samples",
            f"{sum(map(len, self.held_out)):,} characters of the val split, in such pieces",
        )
        rows = [
            (
                name,
                "–" if found.new is None else f"{found.new:.1%}",
                f"{len(found.longest)} characters: "
                f"<code>{html.escape(repr(found.longest), quote=False)}</code>",
            )
            for name, found in zip(about, (self.copied, self.copied_held_out), strict=True)
        ]
        titles = ("text", f"{GRAM}-grams that the train split lacks", "longest stretch it holds")
        return table(titles, rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whose cells may hold anything."""
    cells = [[cell.replace("|", "&#124;").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *cells])
