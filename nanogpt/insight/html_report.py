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

from nanogpt.insight.printable import printable, printable_line

GENERATOR = 'content="nanogpt score"'  # identifies our pages, within their first 1,000 bytes
MAX_BITS = 8.0  # surprisal of the darkest shade
# OKLCH: lightness from 1 to 0.71 and chroma from 0 to 0.165, both in equal steps, at hue 50
SHADES = (
    *("#ffffff", "#fff7f2", "#ffeee5", "#ffe6d9", "#ffdecc", "#fed5bf", "#fecdb2", "#fdc4a6"),
    *("#fcbc99", "#fbb38c", "#f9ab7e", "#f8a271", "#f69963", "#f49054", "#f38744", "#f07d31"),
)
DIGITS = string.digits + string.ascii_letters + "-_"
SHORT_CODES = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in "\"&'<>`")  # one byte each

STYLE = """
:root { color-scheme: light; --faint: #78716c; --sans: system-ui, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
body { margin: 0; background: #fff; color: #1c1917; font: 15px/1.5 var(--sans);
  -webkit-text-size-adjust: 100%; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
main { font-family: var(--mono); max-width: 80ch; margin: 0 auto; padding: 2.5rem 1rem 40vh; }
header { font-family: var(--sans); border-bottom: 1px solid #e7e5e4; padding-bottom: 1.2rem; }
h1 { font-size: 1.5rem; font-weight: 600; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
p { margin: .2rem 0; color: var(--faint); overflow-wrap: anywhere; }
code { font: .9em var(--mono); }
dl { display: flex; flex-wrap: wrap; gap: .8rem 2.2rem; margin: 1.3rem 0 1rem; }
dt { font-size: .8rem; color: var(--faint); }
dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
small { font-size: .75rem; color: var(--faint); }
.legend { display: grid; grid-template-columns: minmax(0, 20rem) auto; gap: 0 .8rem;
  margin-top: 1.2rem; font-size: .8rem; color: var(--faint); }
.ramp { grid-column: 1; display: flex; outline: 1px solid #e7e5e4; }
.ramp i { flex: 1; height: .8rem; }
.ticks { grid-column: 1; grid-row: 2; display: flex; justify-content: space-between; }
.unit { grid-row: 2; }
#text { white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4; unicode-bidi: plaintext;
  line-height: 1.75; margin-top: 1.5rem; }
.c { padding: .26em 0; }
.c:hover { outline: 1.5px solid #44403c; }
.n::before { content: "⏎"; color: #1c191766; }
#tip { position: absolute; box-sizing: border-box; width: 15rem; padding: .6rem .8rem;
  pointer-events: none; background: #fff; border: 1px solid #d6d3d1; border-radius: .5rem;
  box-shadow: 0 4px 16px #0002; font-size: .85rem; font-variant-numeric: tabular-nums; }
#tip div { display: grid; grid-template-columns: 3.4rem 1fr 3.8rem; align-items: center; }
#tip div:first-child { margin-bottom: .35rem; color: var(--faint); }
#tip b { font: 600 1rem var(--mono); color: #1c1917; }
#tip code { color: #1c1917; }
#tip span { text-align: right; }
#tip u { height: .5rem; border-radius: .25rem; background: #d6d3d1; }
#tip .actual u { background: #f07d31; }
@media (max-width: 40rem) { body { font-size: 14px; } main { padding-top: 1.2rem; } }
"""
SCRIPT = """
const digits = "DIGITS", names = NAMES, symbols = {" ": "␣", "\\n": "⏎", "\\t": "⇥"};
const tip = document.getElementById("tip"), main = document.querySelector("main");
const number = (code) => code.reduce((n, digit) => 64 * n + digits.indexOf(digit), 0);
const percent = (p) => 100 * p < 0.05 ? (100 * p).toPrecision(1) : (100 * p).toFixed(1);
function row(tag, name, middle, p, className) {
  const line = tip.appendChild(document.createElement("div"));
  line.className = className;
  line.appendChild(document.createElement(tag)).textContent = name;
  line.appendChild(middle);
  line.appendChild(document.createElement("span")).textContent = percent(p) + " %";
}
function show(event) {
  const c = event.target.closest(".c");
  tip.hidden = !c;
  if (!c) return;
  const data = [...c.dataset.t], name = symbols[c.textContent] || c.textContent;
  const bits = number(data.slice(0, 3)) / 1000, box = c.getClientRects()[0];
  tip.replaceChildren();
  row("b", name, document.createTextNode(bits.toFixed(2) + " bits"), 2 ** -bits, "");
  for (let i = 3; i < data.length; i += 3) {
    const p = number(data.slice(i + 1, i + 3)) / 4095, bar = document.createElement("u");
    bar.style.width = Math.max(100 * p, 1) + "%";
    row("code", names[data[i]], bar, p, names[data[i]] === name ? "actual" : "");
  }
  const maxLeft = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = box.bottom + 6 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, maxLeft)) + scrollX + "px";
  tip.style.top = (above ? box.top - 6 - tip.offsetHeight : box.bottom + 6) + scrollY + "px";
}
for (const kind of ["mouseover", "click", "mouseleave"]) main.addEventListener(kind, show);
"""


@dataclass(frozen=True)
class Summary:
    """The loss of a text under a checkpoint, in nats per character."""

    name: str
    checkpoint: str
    characters: int
    loss: float

    @property
    def bits_per_character(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        """The exponential of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the name, the value and the unit of each number."""
        return [
            ("characters", f"{self.characters:,}", ""),
            ("loss", f"{self.loss:.4f}", "nats per character"),
            ("bits per character", f"{self.bits_per_character:.4f}", ""),
            ("perplexity", f"{self.perplexity:.4f}", ""),
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
    characters = (
        render_character(
            character,
            b,
            "".join(codes[i] + to_base_64(p * 4095, 2) for i, p in zip(ids, ps, strict=True)),
        )
        for character, b, ids, ps in zip(text, bits, likely, probabilities, strict=True)
    )
    header = render_header(summary, notes)
    body = f'{header}<div id="text" lang="" translate="no">{"".join(characters)}</div>'
    escaped_names = json.dumps(names).replace("<", "\\u003c")
    return render_document(printable_line(summary.name), body, escaped_names)


def render_document(title: str, body: str, names: str) -> str:
    """Return an HTML document, given its body and the names of character codes as JSON."""
    shades = "".join(f".s{n} {{ background: {color}; }}\n" for n, color in enumerate(SHADES))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" {GENERATOR}>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}: surprisal</title>\n"
        f"<style>{STYLE}{shades}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        '<div id="tip" role="tooltip" hidden></div>\n'
        f"<script>{SCRIPT.replace('DIGITS', DIGITS).replace('NAMES', names)}</script>\n"
        "</body>\n</html>\n"
    )


def render_header(summary: Summary, notes: Sequence[str]) -> str:
    """Return the part above the text: title, numbers, notes and legend."""
    numbers = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for name, value, unit in summary.rows()
    )
    swatches = "".join(f'<i class="s{n}"></i>' for n in range(len(SHADES)))
    ticks = "".join(f"<span>{bits}</span>" for bits in ("0", "2", "4", "6", "8+"))
    paragraphs = "".join(f"<p>{html.escape(note)}</p>\n" for note in notes)
    return (
        f"<header>\n<h1>{html.escape(printable_line(summary.name))}</h1>\n"
        f"<p>Surprisal under <code>{html.escape(printable_line(summary.checkpoint))}</code></p>\n"
        f"<dl>{numbers}</dl>\n{paragraphs}"
        f'<div class="legend"><div class="ramp">{swatches}</div>'
        f'<div class="ticks">{ticks}</div><span class="unit">bits</span></div>\n</header>\n'
    )


def render_character(character: str, bits: float, likely: str) -> str:
    """Return the shaded span of a character, given the encoded likely ones for its tooltip."""
    shown = printable(character) if character not in " \n\t" else character
    if "\ud800" <= character <= "\udfff":
        shown = "\N{REPLACEMENT CHARACTER}"
    newline = " n" if character == "\n" else ""
    data = to_base_64(bits * 1000, 3) + likely
    return f'<span class="c s{shade(bits)}{newline}" data-t="{data}">{html.escape(shown)}</span>'


def shade(bits: float) -> int:
    """Return the index of a surprisal's shade."""
    return min(int(bits / MAX_BITS * (len(SHADES) - 1)), len(SHADES) - 1)


def to_base_64(value: float, n_digits: int) -> str:
    """Round a number to ``n_digits`` base-64 digits, or to the largest such number."""
    whole = min(round(value), 64**n_digits - 1)
    return "".join(DIGITS[whole >> 6 * i & 63] for i in reversed(range(n_digits)))


def character_code(rank: int) -> str:
    """Return the code point for the character of a frequency rank, short codes first."""
    if rank < len(SHORT_CODES):
        return SHORT_CODES[rank]
    return chr(0x100 + rank if rank < 0xD000 else 0x10000 + rank)  # skips the surrogates
