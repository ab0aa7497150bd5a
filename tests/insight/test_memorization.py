"""The overlap equals that of a search for every substring of the samples."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.insight.memorization import Overlap, find_overlap

ALPHABET = "to be, or not: that is the question"


def plain(samples: list[str], text: str) -> tuple[int, float | None]:
    """The length of the longest common substring, and the fraction of novel 8-grams."""
    substrings = {
        sample[i:j]
        for sample in samples
        for i in range(len(sample))
        for j in range(i + 1, len(sample) + 1)
    }
    longest = max((len(substring) for substring in substrings if substring in text), default=0)
    grams = [sample[i : i + 8] for sample in samples for i in range(len(sample) - 7)]
    novel = [gram for gram in grams if gram not in text]
    return longest, len(novel) / len(grams) if grams else None


def check(samples: list[str], text: str) -> None:
    overlap = find_overlap(samples, text)
    assert (len(overlap.longest), overlap.novel) == plain(samples, text)
    assert overlap.longest in text
    assert any(overlap.longest in sample for sample in samples) or not overlap.longest


@settings(derandomize=True, deadline=None)
@given(
    st.lists(st.text("ab", max_size=30), max_size=3),
    st.text("ab", max_size=120),
)
def test_texts_of_two_letters(samples: list[str], text: str) -> None:
    check(samples, text)


@settings(derandomize=True, deadline=None)
@given(st.text("abc", max_size=60), st.data())
def test_samples_that_contain_a_substring_of_the_text(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    before, after = data.draw(st.tuples(*[st.text("abcd", max_size=12)] * 2))
    check([before, before + text[start:end] + after], text)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], Overlap("", None)),
        ([""], Overlap("", None)),
        (["xyz"], Overlap("", None)),
        (["XYZXYZXYZ"], Overlap("", 1.0)),
        (["Zbe, oZ"], Overlap("be, o", None)),
        (["ZZZZZZZZnot: thZZZZZZZZ"], Overlap("not: th", 1.0)),
        (["ZZnot: thaZZ"], Overlap("not: tha", 4 / 5)),
        ([ALPHABET], Overlap(ALPHABET, 0.0)),
        ([ALPHABET[5:25], "be"], Overlap(ALPHABET[5:25], 0.0)),
        (["XXX the question"], Overlap(" the question", 3 / 9)),  # at the end of the text
        (["XXX the questions"], Overlap(" the question", 4 / 10)),
        (["to be, or XXXXXXX", "the question"], Overlap("the question", 7 / 15)),
        (["to be, or"] * 2, Overlap("to be, or", 0.0)),
    ],
)
def test_examples(samples: list[str], expected: Overlap) -> None:
    assert find_overlap(samples, ALPHABET) == expected


@pytest.mark.parametrize("text", ["", "a", "ab, not", "ab, not "])
def test_text_of_one_8_gram_or_less(text: str) -> None:
    check(["ab, not that", "b"], text)


def test_characters_outside_the_basic_plane_count_as_one() -> None:
    assert find_overlap(["🎭🎭é"], "é🎭🎭") == Overlap("🎭🎭", None)
