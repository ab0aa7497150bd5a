"""A page in which every character of a text is shaded by how much it surprised a model.

It is one file that needs nothing else. What the tooltip of a character says lies in the
character's ``data-t``, three code points a number: its surprisal in thousandths of a bit, three
digits to the base 64, then for each likely character one code point that stands for it and two
digits, its probability in 4,095ths.
"""

import html
import json
import math
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from nanogpt.insight.printable import one_line, visible

MARK = 'content="nanogpt score"'  # by which a page of ours is known, early in the file
STRONGEST = 8.0  # bits, from which on the shade is the strongest
# OKLCH: lightness from 1 to 0.71 and chroma from 0 to 0.165, both in equal steps, at hue 50
SHADES = (
    *("#ffffff", "#fff7f2", "#ffeee5", "#ffe6d9", "#ffdecc", "#fed5bf", "#fecdb2", "#fdc4a6"),
    *("#fcbc99", "#fbb38c", "#f9ab7e", "#f8a271", "#f69963", "#f49054", "#f38744", "#f07d31"),
)
DIGITS = string.digits + string.ascii_letters + "-_"
CODES = "".join(c for c in map(chr, range(0x21, 0x7F)) if c not in "\"&'<>`")


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
#tip .own u { background: #f07d31; }
@media (max-width: 40rem) { body { font-size: 14px; } main { padding-top: 1.2rem; } }
"""
SCRIPT = """
const digits = "DIGITS", names = NAMES, own = {" ": "␣", "\\n": "⏎", "\\t": "⇥"};
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
  const data = [...c.dataset.t], name = own[c.textContent] || c.textContent;
  const bits = number(data.slice(0, 3)) / 1000, box = c.getClientRects()[0];
  tip.replaceChildren();
  row("b", name, document.createTextNode(bits.toFixed(2) + " bits"), 2 ** -bits, "");
  for (let i = 3; i < data.length; i += 3) {
    const p = number(data.slice(i + 1, i + 3)) / 4095, bar = document.createElement("u");
    bar.style.width = Math.max(100 * p, 1) + "%";
    row("code", names[data[i]], bar, p, names[data[i]] === name ? "own" : "");
  }
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = box.bottom + 6 + tip.offsetHeight > innerHeight;
  tip.style.left = Math.max(8, Math.min(box.left, room)) + scrollX + "px";
  tip.style.top = (above ? box.top - 6 - tip.offsetHeight : box.bottom + 6) + scrollY + "px";
}
for (const kind of ["mouseover", "click", "mouseleave"]) main.addEventListener(kind, show);
"""


@dataclass(frozen=True)
class Summary:
    """What was scored and how it came out; ``loss`` is in nats per character."""

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
        """Among how many equally likely characters the model seems to choose."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the name, the value and the unit of each number."""
        return [
            ("characters", f"{self.characters:,}", ""),
            ("loss", f"{self.loss:.4f}", "nats per character"),
            ("bits per character", f"{self.bits_per_character:.4f}", ""),
            ("perplexity", f"{self.perplexity:.4f}", ""),
        ]


def page(
    summary: Summary,
    notes: Sequence[str],
    text: str,
    bits: Sequence[float],
    likely: Sequence[Sequence[int]],
    chances: Sequence[Sequence[float]],
    vocabulary: str,
) -> str:
    """Return the page, which can be encoded in UTF-8 whatever the text.

    Args:
        summary: of the whole text.
        notes: what else the header should say.
        text: the N characters that are shown.
        bits: the surprisal of each.
        likely: the ids of the k most likely characters at each place, the likeliest first.
        chances: their probabilities.
        vocabulary: the character of each id.
    """
    by_use = Counter(chain.from_iterable(likely)).most_common()  # the short codes for most
    codes = {i: code(rank) for rank, (i, _) in enumerate(by_use)}
    names = {codes[i]: visible(vocabulary[i]) for i in codes}
    spans = (
        span(character, b, [codes[i] + digits(p * 4095, 2) for i, p in zip(ids, ps, strict=True)])
        for character, b, ids, ps in zip(text, bits, likely, chances, strict=True)
    )
    body = f'{header(summary, notes)}<div id="text" lang="" translate="no">{"".join(spans)}</div>'
    return frame(one_line(summary.name), body, json.dumps(names).replace("<", "\\u003c"))


def frame(title: str, body: str, names: str) -> str:
    """Return a whole document: what stands in it, and the names of characters as JSON."""
    shades = "".join(f".s{n} {{ background: {color}; }}\n" for n, color in enumerate(SHADES))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" {MARK}>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}: surprisal</title>\n"
        f"<style>{STYLE}{shades}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        '<div id="tip" role="tooltip" hidden></div>\n'
        f"<script>{SCRIPT.replace('DIGITS', DIGITS).replace('NAMES', names)}</script>\n"
        "</body>\n</html>\n"
    )


def header(summary: Summary, notes: Sequence[str]) -> str:
    """Return the part above the text: what was scored, the numbers and the legend."""
    numbers = "".join(
        f"<div><dt>{name}</dt><dd>{value}{f' <small>{unit}</small>' if unit else ''}</dd></div>"
        for name, value, unit in summary.rows()
    )
    swatches = "".join(f'<i class="s{n}"></i>' for n in range(len(SHADES)))
    ticks = "".join(f"<span>{bits}</span>" for bits in ("0", "2", "4", "6", "8+"))
    more = "".join(f"<p>{html.escape(note)}</p>\n" for note in notes)
    return (
        f"<header>\n<h1>{html.escape(one_line(summary.name))}</h1>\n"
        f"<p>Surprisal under <code>{html.escape(one_line(summary.checkpoint))}</code></p>\n"
        f"<dl>{numbers}</dl>\n{more}"
        f'<div class="legend"><div class="ramp">{swatches}</div>'
        f'<div class="ticks">{ticks}</div><span class="unit">bits</span></div>\n</header>\n'
    )


def span(character: str, bits: float, likely: Sequence[str]) -> str:
    """Return one character, shaded, with the data of its tooltip."""
    shown = visible(character) if character not in " \n\t" else character
    if "\ud800" <= character <= "\udfff":
        shown = "\N{REPLACEMENT CHARACTER}"
    line_end = " n" if character == "\n" else ""
    data = digits(bits * 1000, 3) + "".join(likely)
    return f'<span class="c s{shade(bits)}{line_end}" data-t="{data}">{html.escape(shown)}</span>'


def shade(bits: float) -> int:
    """Return which of the shades stands for a surprisal: 0 for the faintest."""
    return min(int(bits / STRONGEST * (len(SHADES) - 1)), len(SHADES) - 1)


def digits(value: float, places: int) -> str:
    """Return the nearest whole number in so many digits to the base 64, or the largest."""
    whole = min(round(value), 64**places - 1)
    return "".join(DIGITS[whole >> 6 * place & 63] for place in reversed(range(places)))


def code(rank: int) -> str:
    """Return the code point that stands for the character of a rank, the shortest first."""
    if rank < len(CODES):
        return CODES[rank]
    return chr(0x100 + rank if rank < 0xD000 else 0x10000 + rank)  # around the surrogates
