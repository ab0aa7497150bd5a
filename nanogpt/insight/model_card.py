"""The model card of a finished run, ``card.md``."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nanogpt.insight.memorization import NGRAM_SIZE, Overlap
from nanogpt.insight.ngrams import NGram
from nanogpt.insight.reference import Losses

TEMPLATE = """\
# {title}

![losses by step, and val loss by position in the context](curves.png)

{facts}

## {losses_title}

{losses}

## N-gram baselines

Losses of n-gram counts, in nats per character. A model that sees no more context cannot have a
lower loss on the train split than the first.

{ngrams}

## Memorization

{overlap}

## Sample

```text
{sample}
```

## Settings

All other settings have their defaults; `config.yaml` has all of them.

```yaml
{settings}
```
"""


@dataclass(frozen=True)
class ModelCard:
    """The contents of a model card.

    ``comparison`` is the table of the run's losses and the reference's, or "". ``overlap`` is that
    of the samples with the train split, ``val_overlap`` that of excerpts of the val split with it.
    ``settings`` are those that differ from their defaults.
    """

    title: str
    facts: Mapping[str, str]
    history: Sequence[Losses]
    comparison: str
    ngrams: Sequence[NGram]
    samples: Sequence[str]
    overlap: Overlap
    val_excerpts: Sequence[str]
    val_overlap: Overlap
    settings: Mapping[str, Any]

    def markdown(self) -> str:
        """Return the card in Markdown."""
        rows = [f"{row.step:6d} {row.train:8.4f} {row.val:8.4f}" for row in self.history]
        losses = self.comparison or "\n".join(["  step    train      val", *rows])
        return TEMPLATE.format(
            title=self.title,
            facts=table(("", ""), [(f"**{name}**", fact) for name, fact in self.facts.items()]),
            losses_title="Losses compared with the reference" if self.comparison else "Losses",
            losses=f"```text\n{losses}\n```",
            ngrams=table(
                ("counts", "entropy of the train split", "loss on the val split"),
                [(n.name, f"{n.entropy:.4f}", f"{n.held_out:.4f}") for n in self.ngrams],
            ),
            overlap=self._overlap_table(),
            sample=self.samples[0].strip("\n").replace("```", "'''"),
            settings="\n".join(
                f"{name}: {json.dumps(v, default=str, ensure_ascii=False)}"
                for name, v in self.settings.items()
            ),
        )

    def _overlap_table(self) -> str:
        names = (
            f"{sum(map(len, self.samples)):,} characters in {len(self.samples)} samples",
            f"{sum(map(len, self.val_excerpts)):,} characters of the val split, in such excerpts",
        )
        rows = [
            (
                name,
                "–" if overlap.novel is None else f"{overlap.novel:.1%}",
                f"{len(overlap.longest)} characters: "
                f"<code>{html.escape(repr(overlap.longest), quote=False)}</code>",
            )
            for name, overlap in zip(names, (self.overlap, self.val_overlap), strict=True)
        ]
        novel = f"{NGRAM_SIZE}-grams not in the train split"
        return table(("text", novel, "longest substring of the train split"), rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, with ``|`` and line breaks in cells escaped."""
    cells = [[cell.replace("|", "&#124;").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *cells])
