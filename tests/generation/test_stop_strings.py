"""A text ends before the first of its stop strings, in whatever pieces it comes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.generation.stop_strings import StopStringFilter

# of two letters, so that stop strings are met often, and overlap
TEXT = st.text("ab", max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("ab", max_size=5), max_size=8)
hypothesis_settings = settings(derandomize=True, deadline=None, max_examples=200)


def ends_before(text: str, stops: list[str]) -> tuple[str, bool]:
    """Return what is to be shown of a text and whether a stop string is in it, letter by letter."""
    for end in range(1, len(text) + 1):
        if met := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, met))], True
    return text, False


def may_go_on(text: str, stops: list[str]) -> str:
    """Return the longest end of a text that could become a stop string."""
    ends = [text[begin:] for begin in range(len(text) + 1)]
    return next(end for end in ends if any(stop.startswith(end) for stop in [*stops, ""]))


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    watch = StopStringFilter(stops)
    return "".join(watch.feed(piece) for piece in pieces) + watch.rest(), watch.met


@hypothesis_settings
@given(PIECES, STOPS)
def test_a_text_in_pieces_ends_where_it_ends_letter_by_letter(
    pieces: list[str], stops: list[str]
) -> None:
    text = "".join(pieces)
    assert shown(pieces, stops) == shown([text], stops) == shown([*text], stops)
    assert shown(pieces, stops) == ends_before(text, stops)


@hypothesis_settings
@given(PIECES, STOPS)
def test_just_what_may_become_a_stop_string_is_held_back(
    pieces: list[str], stops: list[str]
) -> None:
    watch, let_out, text = StopStringFilter(stops), "", ""
    for piece in pieces:
        let_out, text = let_out + watch.feed(piece), text + piece
        before, met = ends_before(text, stops)
        assert watch.met == met
        assert let_out == (before if met else text.removesuffix(may_go_on(text, stops)))
        if met:
            break


@hypothesis_settings
@given(TEXT, STOPS, TEXT)
def test_no_stop_string_is_let_out_and_nothing_after_one(
    text: str, stops: list[str], more: str
) -> None:
    before, met = shown([*text], stops)
    assert not any(stop in before for stop in stops)
    if met:
        assert shown([text, more], stops) == (before, True)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("xaab", ["aab", "ab"], "x"),  # both end here: all of the longer one goes
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
def test_where_a_text_ends(text: str, stops: list[str], expected: str) -> None:
    assert shown([text], stops) == shown([*text], stops) == (expected, expected != text)


def test_held_text_is_given_back_once() -> None:
    watch = StopStringFilter(["abc"])
    assert [watch.feed(letter) for letter in "xabab"] == ["x", "", "", "ab", ""]
    assert watch.rest() == "ab"
    assert watch.rest() == ""
    assert not watch.met


def test_without_stop_strings_all_goes_through_at_once() -> None:
    watch = StopStringFilter()
    assert [watch.feed(piece) for piece in ("ab", "", "c")] == ["ab", "", "c"]
    assert watch.rest() == ""


@pytest.mark.parametrize("stops", [[""], ["a", ""]])
def test_an_empty_stop_string_is_refused(stops: list[str]) -> None:
    with pytest.raises(UserError, match="cannot be empty"):
        StopStringFilter(stops)
