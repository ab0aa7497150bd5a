"""The page contains the text, whatever its characters, and the data of the tooltips."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import pytest

from nanogpt.insight.html_report import (
    DIGITS,
    GENERATOR,
    N_SHADES,
    SHORT_CODES,
    Summary,
    character_code,
    render_character,
    render_page,
    to_base_64,
)
from nanogpt.insight.printable import printable, printable_line

HOSTILE = [
    *("<script>alert(1)</script>", "</div></main><!--", "\"'&amp;&lt;>`", "<![CDATA[", "{}[]()\\"),
    *("a\x00b\x1b\x7f\x85", "\u202eright\u200f to left\u2066", "\ufeff\u2028\u2029\u200d"),
    *("⏎ ␣ \ufffd", "\n\n  two\tand\n \n", "𝔘🎭é\u0301", "$names ${digits} $$ $", "مرحبا שלום"),
]  # fmt: skip


class Page(HTMLParser):
    """Parses a page into its elements, the spans of its text and its script."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.spans: list[tuple[dict[str, str | None], str]] = []
        self.open: list[str] = []
        self.data: dict[str, str] = {}
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)
        if tag == "span" and "data-t" in dict(attrs):
            self.spans.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.data[self.open[-1]] = self.data.get(self.open[-1], "") + data
        if self.open[-1:] == ["span"] and self.open[-2] == "div" and self.spans:
            attributes, text = self.spans[-1]
            self.spans[-1] = attributes, text + data

    def shade(self, position: int) -> int:
        return int((self.spans[position][0]["class"] or "").split()[1].removeprefix("s"))

    def tooltip(self, position: int) -> tuple[float, list[tuple[str, float]]]:
        """The bits at a position, and the likely characters with their probabilities."""
        match = re.search(r"names = (\{.*?\});", self.data["script"])
        assert match
        names = json.loads(match[1])
        data = self.spans[position][0]["data-t"] or ""
        parts = [data[i : i + 3] for i in range(0, len(data), 3)]
        likely = [(names[part[0]], number(part[1:]) / 4095) for part in parts[1:]]
        return number(parts[0]) / 1000, likely


def number(digits: str) -> int:
    return sum(DIGITS.index(d) * 64**i for i, d in enumerate(reversed(digits)))


def page_of(text: str, name: str = "my.txt", notes: tuple[str, ...] = ()) -> str:
    """A page whose characters have 0, 0.7, 1.4, … bits, and two likely characters each."""
    vocabulary = "".join(sorted(set(text)))
    bits = [0.7 * i for i in range(len(text))]
    likely = [[vocabulary.index(c), (i * 7) % len(vocabulary)] for i, c in enumerate(text)]
    probabilities = [[0.6, 0.4 / (i + 1)] for i in range(len(text))]
    summary = Summary(name, "runs/best.ckpt", 1234, 1.6487)
    return render_page(summary, notes, text, bits, likely, probabilities, vocabulary)


def test_spans_contain_the_text() -> None:
    text = "The time is <out>\n\n\tof joint & \"so\" 'on'. 🎭é⏎\n"
    page = Page(page_of(text))
    assert "".join(shown for _, shown in page.spans) == text


def test_tooltips_contain_bits_and_likely_characters() -> None:
    text = "The time\nis out."
    page, vocabulary = Page(page_of(text)), sorted(set(text))
    for i, character in enumerate(text):
        bits, likely = page.tooltip(i)
        assert bits == pytest.approx(0.7 * i, abs=5e-4)
        assert likely[0] == (printable(character), pytest.approx(0.6, abs=1e-3 / 8))
        other = printable(vocabulary[i * 7 % len(vocabulary)])
        assert likely[1] == (other, pytest.approx(0.4 / (i + 1), abs=1e-3 / 8))


def test_shades_increase_with_surprisal_and_are_legible() -> None:
    page = Page(page_of("abcdefghijklmnopqrst"))
    shades = [page.shade(i) for i in range(20)]
    assert shades == sorted(shades)
    assert len(set(shades)) > 10
    spans = [render_character("a", bits, "") for bits in (0, 0.53, 0.54, 7.99, 8, 99)]
    assert re.findall(r'"c s(\d+)"', "".join(spans)) == ["0", "0", "1", "14", "15", "15"]
    colors = re.findall(r"^\.s\d+ { background: (#\w{6}); }$", page.data["style"], re.MULTILINE)
    assert len(colors) == N_SHADES == page.elements["i"]
    light = [luminance(color) for color in (*colors, "#1c1917")]
    assert light == sorted(light, reverse=True)
    assert light[0] == 1
    assert (light[15] + 0.05) / (light[16] + 0.05) > 4.5  # the contrast that WCAG 2 requires


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert(text: str) -> None:
    harmless, content = Page(page_of("x" * len(text))), page_of(text, name=text)
    page = Page(content)
    assert page.elements == harmless.elements
    assert page.attributes == harmless.attributes
    expected = [c if c in " \n\t" else printable(c) for c in text]
    assert [shown for _, shown in page.spans] == expected
    assert printable_line(text) in page.data["h1"]
    assert not re.search(r">[<>&\"']</span>|names = [^}]*<[^}]*\};", content)
    unprintable = {c for c in content if c != "\n" and printable(c) not in (c, "␣", "⇥")}
    assert not unprintable


def test_lone_surrogates_become_replacement_characters() -> None:
    content = page_of("a\ud800b\udfff", name="\udc80.txt")
    page = Page(content.encode().decode())
    assert "".join(shown for _, shown in page.spans) == "a�b�"
    assert page.tooltip(1)[1][0][0] == r"\ud800"


def test_header_contains_the_summary_and_notes() -> None:
    content = page_of("abc", name="<my>.txt", notes=("only <some> of it",))
    assert content.startswith("<!doctype html>")
    assert GENERATOR in content[:1000]
    page = Page(content)
    assert page.data["title"] == "<my>.txt: surprisal"
    assert page.data["code"] == "runs/best.ckpt"
    assert page.data["dd"] == "1,2341.6487 2.37865.2002"
    assert page.data["small"] == "nats per character"
    assert "only <some> of it" in page.data["p"]
    assert page.elements["i"] == 16
    assert not re.search(r"""(src|href|url|@import|https?:)""", content)


def test_page_is_small() -> None:
    text = "Now is the winter of our discontent\nmade glorious summer " * 100
    assert len(page_of(text).encode()) / len(text) < 60


def test_every_character_has_a_distinct_code() -> None:
    codes = [character_code(rank) for rank in range(70_000)]
    assert len(set(codes)) == len(codes)
    assert all(len(c) == 1 for c in codes)
    assert not {*"\"'<>&` \n\t"} & {*codes}
    assert codes[: len(SHORT_CODES)] == list(SHORT_CODES)
    "".join(codes).encode()


def test_base_64() -> None:
    assert [number(to_base_64(n, 2)) for n in (0, 1, 63, 64, 4095)] == [0, 1, 63, 64, 4095]
    assert number(to_base_64(1e9, 3)) == 64**3 - 1
    assert number(to_base_64(2.6, 1)) == 3


def test_unprintable_characters_become_symbols_or_escapes() -> None:
    expected = {"\n": "⏎", " ": "␣", "\t": "⇥", "\x00": r"\x00", "\x9f": r"\x9f", "\r": r"\r",
                "\u202e": r"\u202e", "\ud800": r"\ud800", "\u2028": r"\u2028",
                "\U000e0041": r"\U000e0041"}  # fmt: skip
    expected |= {c: c for c in 'aé<&"\\🎭�⏎\u00a0'}
    assert {c: printable(c) for c in expected} == expected
    assert printable_line("a b\n\tc\x00") == r"a b⏎⇥c\x00"
