"""A text ends before the first stop string, however it is split into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.generation.stop_strings import StopStringFilter

# two letters, so that stop strings are frequent and overlap
TEXT = st.text("ab", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("ab", max_size=5), max_size=8)
hypothesis_settings = settings(derandomize=True, deadline=None, max_examples=200)


def ends_before(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return the text before the first stop string, and whether there is one, letter by letter."""
    for end in range(1, len(text) + 1):
        if met := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, met))], True
    return text, False


def held_back(text: str, stops: list[str]) -> str:
    """Return the longest suffix of a text that could become a stop string."""
    suffixes = [text[start:] for start in range(len(text) + 1)]
    return next(s for s in suffixes if any(stop.startswith(s) for stop in [*stops, ""]))


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stop = StopStringFilter(stops)
    return "".join(stop.feed(piece) for piece in pieces) + stop.flush(), stop.stopped


@hypothesis_settings
@given(PIECES, STOPS)
def test_result_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    assert shown(pieces, stops) == shown([text], stops) == shown([*text], stops)
    assert shown(pieces, stops) == ends_before(text, stops)


@hypothesis_settings
@given(PIECES, STOPS)
def test_only_the_beginning_of_a_stop_string_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    stop, output, text = StopStringFilter(stops), "", ""
    for piece in pieces:
        output, text = output + stop.feed(piece), text + piece
        before, met = ends_before(text, stops)
        assert stop.stopped == met
        assert output == (before if met else text.removesuffix(held_back(text, stops)))
        if met:
            break


@hypothesis_settings
@given(TEXT, STOPS, TEXT)
def test_no_stop_string_and_nothing_after_it_is_shown(
    text: str, stops: list[str], more: str
) -> None:
    before, met = shown([*text], stops)
    assert not any(stop in before for stop in stops)
    if met:
        assert shown([text, more], stops) == (before, True)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("xaab", ["aab", "ab"], "x"),  # both end here: the longer one is removed
        ("xaab", ["ab", "aab"], "x"),
        ("xabc", ["abc", "b"], "xa"),  # the one that ends first counts
        ("aaaab", ["aab"], "aa"),
        ("ababac", ["abac"], "ab"),
        ("xab", ["ab", "ab"], "x"),
        ("stop", ["stop"], ""),
        ("line\nnext", ["\n"], "line"),
        ("a🎭é\u0301b", ["🎭é"], "a"),
        ("Stop", ["stop"], "Stop"),
    ],
)
def test_end_of_text(text: str, stops: list[str], expected: str) -> None:
    assert shown([text], stops) == shown([*text], stops) == (expected, expected != text)


def test_rest_returns_held_text_once() -> None:
    stop = StopStringFilter(["abc"])
    assert [stop.feed(letter) for letter in "xabab"] == ["x", "", "", "ab", ""]
    assert stop.flush() == "ab"
    assert stop.flush() == ""
    assert not stop.stopped


def test_without_stop_strings_nothing_is_held_back() -> None:
    stop = StopStringFilter()
    assert [stop.feed(piece) for piece in ("ab", "", "c")] == ["ab", "", "c"]
    assert stop.flush() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_empty_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(UserError, match="cannot be empty"):
        StopStringFilter(stops)
