"""Characters to ids and back, for any Unicode text."""

from string import ascii_letters

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.text.tokenizer import Tokenizer

TINY_SHAKESPEARE = "".join(sorted("\n !$&',-.3:;?" + ascii_letters))
# all of Unicode, including lone surrogates and characters outside the basic plane
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=50)


def test_ids_of_the_vocabulary_of_tiny_shakespeare() -> None:
    tokenizer = Tokenizer(TINY_SHAKESPEARE)
    assert len(TINY_SHAKESPEARE) == 65
    assert tokenizer.encode("hii there").tolist() == [46, 47, 47, 1, 58, 46, 43, 56, 43]
    assert tokenizer.encode("\nz").tolist() == [0, 64]


def test_vocabulary_is_the_sorted_set_of_characters() -> None:
    assert Tokenizer.from_text("to be, or not to be\n").vocabulary == "\n ,benort"
    assert Tokenizer.from_text("z\U0001f600\uffff\ud800é").vocabulary == "zé\ud800\uffff\U0001f600"


@settings(derandomize=True, deadline=None)
@given(ANY_TEXT.filter(len))
def test_round_trip(text: str) -> None:
    tokenizer = Tokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert ids.tolist() == [tokenizer.vocabulary.index(character) for character in text]
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["\U0001f600a\U0010ffff", "\ud83d\ude00", "\udc80a\ud800", "\0"])
def test_round_trip_of_odd_characters(text: str) -> None:
    tokenizer = Tokenizer.from_text(text)
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_order_of_the_vocabulary_is_kept() -> None:
    tokenizer = Tokenizer("cab")
    assert tokenizer.encode("abc").tolist() == [1, 2, 0]
    assert tokenizer.decode(torch.tensor([0, 1, 2])) == "cab"


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, torch.uint8), (256, torch.uint8), (257, torch.int32)]
)
def test_dtype_is_the_smallest_for_the_vocabulary(size: int, dtype: torch.dtype) -> None:
    vocabulary = "".join(map(chr, range(0x4E00, 0x4E00 + size)))
    ids = Tokenizer(vocabulary).encode(vocabulary)
    assert ids.dtype == dtype
    assert ids.tolist() == list(range(size))
    assert Tokenizer(vocabulary).decode(ids) == vocabulary


def test_empty_text_has_no_ids() -> None:
    ids = Tokenizer("ab").encode("")
    assert ids.shape == (0,)
    assert ids.dtype == torch.uint8
    assert Tokenizer("ab").decode(ids) == ""


@pytest.mark.parametrize(
    ("text", "character", "position"),
    [
        ("acéb", "é", 2),  # above the vocabulary
        ("ab\tb", "\t", 2),  # below it
        ("abbc", "b", 1),  # in a gap of it; the first of two is reported
        ("\U0010ffff", "\U0010ffff", 0),
        ("d", "d", 0),  # directly above it
    ],
)
def test_unknown_character_is_reported_with_its_position(
    text: str, character: str, position: int
) -> None:
    with pytest.raises(UserError) as error:
        Tokenizer("ac" if character == "b" else "abc").encode(text)
    assert f"{character!r} at position {position} is not in the vocabulary" in str(error.value)
    assert "\n" not in str(error.value)


def test_error_shortens_a_large_vocabulary() -> None:
    vocabulary = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    with pytest.raises(UserError, match="5000 characters") as error:
        Tokenizer(vocabulary).encode("a")
    assert len(str(error.value)) < 250


@pytest.mark.parametrize("vocabulary", ["", "aba"])
def test_vocabulary_must_contain_each_character_once(vocabulary: str) -> None:
    with pytest.raises(ValueError, match="distinct characters"):
        Tokenizer(vocabulary)
