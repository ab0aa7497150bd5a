"""What was copied is what a search for every stretch of a sample finds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.insight.memorization import Copied, copied

ALPHABET = "to be, or not: that is the question"


def plain(samples: list[str], text: str) -> tuple[int, float | None]:
    """The length of the longest copied stretch, and the share of 8-grams that are new."""
    stretches = {
        sample[i:j]
        for sample in samples
        for i in range(len(sample))
        for j in range(i + 1, len(sample) + 1)
    }
    longest = max((len(stretch) for stretch in stretches if stretch in text), default=0)
    grams = [sample[i : i + 8] for sample in samples for i in range(len(sample) - 7)]
    new = [gram for gram in grams if gram not in text]
    return longest, len(new) / len(grams) if grams else None


def check(samples: list[str], text: str) -> None:
    found = copied(samples, text)
    assert (len(found.longest), found.new) == plain(samples, text)
    assert found.longest in text
    assert any(found.longest in sample for sample in samples) or not found.longest


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.text("ab", max_size=30), max_size=3),
    st.text("ab", max_size=120),
)
def test_two_letters_overlap_much(samples: list[str], text: str) -> None:
    check(samples, text)


@settings(derandomize=True, deadline=None)
@given(st.text("abc", max_size=60), st.data())
def test_stretches_of_the_text_are_found_among_others(text: str, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    before, after = data.draw(st.tuples(*[st.text("abcd", max_size=12)] * 2))
    check([before, before + text[begin:end] + after], text)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], Copied("", None)),
        ([""], Copied("", None)),
        (["xyz"], Copied("", None)),
        (["XYZXYZXYZ"], Copied("", 1.0)),
        (["Zbe, oZ"], Copied("be, o", None)),
        (["ZZZZZZZZnot: thZZZZZZZZ"], Copied("not: th", 1.0)),
        (["ZZnot: thaZZ"], Copied("not: tha", 4 / 5)),
        ([ALPHABET], Copied(ALPHABET, 0.0)),
        ([ALPHABET[5:25], "be"], Copied(ALPHABET[5:25], 0.0)),
        (["XXX the question"], Copied(" the question", 3 / 9)),  # to the text's end
        (["XXX the questions"], Copied(" the question", 4 / 10)),
        (["to be, or XXXXXXX", "the question"], Copied("the question", 7 / 15)),
        (["to be, or"] * 2, Copied("to be, or", 0.0)),
    ],
)
def test_by_hand(samples: list[str], expected: Copied) -> None:
    assert copied(samples, ALPHABET) == expected


@pytest.mark.parametrize("text", ["", "a", "ab, not", "ab, not "])
def test_a_text_may_be_as_short_as_a_gram_or_shorter(text: str) -> None:
    check(["ab, not that", "b"], text)


def test_characters_beyond_the_first_plane_count_as_one() -> None:
    assert copied(["🎭🎭é"], "é🎭🎭") == Copied("🎭🎭", None)
