"""An HTML page that shades every character of a text by its surprisal under a model.

The page is one file without dependencies. The data of a character's tooltip is in its ``data-t``
attribute, three code points per item: first the surprisal in thousandths of a bit, as three base-64
digits; then for each likely character its code, and its probability in 4,095ths as two digits.
"""

import html
import json
import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nanogpt.insight.printable import printable, printable_line

PAGE, STYLE, SCRIPT = (
    Path(__file__).with_suffix(suffix).read_text("utf-8") for suffix in (".html", ".css", ".js")
)
GENERATOR = 'content="nanogpt score"'  # identifies our pages, within their first 1,000 bytes
MAX_BITS, N_SHADES = 8.0, 16  # surprisal of the darkest shade; shades in the style
DIGITS = string.digits + string.ascii_letters + "-_"
SHORT_CODES = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in "\"&'<>`")  # one byte each


@dataclass(frozen=True)
class Summary:
    """The loss of a text under a checkpoint, in nats per character."""

    name: str
    checkpoint: str
    characters: int
    loss: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the name, the value and the unit of each number."""
        perplexity = math.exp(self.loss) if self.loss < 700 else math.inf
        return [
            ("characters", f"{self.characters:,}", ""),
            ("loss", f"{self.loss:.4f}", "nats per character"),
            ("bits per character", f"{self.loss / math.log(2):.4f}", ""),
            ("perplexity", f"{perplexity:.4f}", ""),
        ]


def render_page(
    summary: Summary,
    notes: Sequence[str],
    text: str,
    bits: Sequence[float],
    likely: Sequence[Sequence[int]],
    probabilities: Sequence[Sequence[float]],
    vocabulary: str,
) -> str:
    """Return the page, which can be encoded as UTF-8 for any text.

    Args:
        summary: of the whole text.
        notes: further paragraphs of the header.
        text: the N characters to show.
        bits: the surprisal of each.
        likely: for each, the ids of the k most likely characters, most likely first.
        probabilities: their probabilities.
        vocabulary: the character of each id.
    """
    by_frequency = Counter(chain.from_iterable(likely)).most_common()  # short codes come first
    codes = {i: character_code(rank) for rank, (i, _) in enumerate(by_frequency)}
    names = {code: printable(vocabulary[i]) for i, code in codes.items()}
    spans = []
    for character, b, ids, ps in zip(text, bits, likely, probabilities, strict=True):
        encoded = (codes[i] + to_base_64(p * 4095, 2) for i, p in zip(ids, ps, strict=True))
        spans.append(render_character(character, b, "".join(encoded)))
    numbers = (
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for name, value, unit in summary.rows()
    )
    return string.Template(PAGE).substitute(
        generator=GENERATOR,
        style=STYLE,
        script=SCRIPT,
        digits=DIGITS,
        names=json.dumps(names).replace("<", "\\u003c"),
        name=html.escape(printable_line(summary.name)),
        checkpoint=html.escape(printable_line(summary.checkpoint)),
        numbers="".join(numbers),
        notes="\n".join(f"<p>{html.escape(note)}</p>" for note in notes),
        text="".join(spans),
    )


def render_character(character: str, bits: float, likely: str) -> str:
    """Return the shaded span of a character, given the encoded likely ones for its tooltip."""
    shown = printable(character) if character not in " \n\t" else character
    if "\ud800" <= character <= "\udfff":
        shown = "\N{REPLACEMENT CHARACTER}"
    newline = " n" if character == "\n" else ""
    shade = min(int(bits / MAX_BITS * (N_SHADES - 1)), N_SHADES - 1)
    data = to_base_64(bits * 1000, 3) + likely
    return f'<span class="c s{shade}{newline}" data-t="{data}">{html.escape(shown)}</span>'


def to_base_64(value: float, n_digits: int) -> str:
    """Round a number to ``n_digits`` base-64 digits, or to the largest such number."""
    whole = min(round(value), 64**n_digits - 1)
    return "".join(DIGITS[whole >> 6 * i & 63] for i in reversed(range(n_digits)))


def character_code(rank: int) -> str:
    """Return the code point for the character of a frequency rank, short codes first."""
    if rank < len(SHORT_CODES):
        return SHORT_CODES[rank]
    return chr(0x100 + rank if rank < 0xD000 else 0x10000 + rank)  # skips the surrogates
