"""How much of a model's samples is copied from its training text."""

from collections.abc import Iterator
from dataclasses import dataclass

NGRAM_SIZE = 8  # characters: about a word and a half


@dataclass(frozen=True)
class Overlap:
    """The overlap of some samples with a training text.

    Args:
        longest: the longest substring of a sample that the text contains.
        novel: the fraction of the samples' 8-grams that the text lacks; None if no sample has 8
            characters.
    """

    longest: str
    novel: float | None


def find_overlap(samples: list[str], text: str) -> Overlap:
    """Compare every substring of some samples with a text.

    One pass over the text finds all occurrences of the samples' 8-grams. A longer common substring
    must start at one of them, so each further length only checks the remaining positions.
    """
    length = NGRAM_SIZE
    positions = find_ngrams(samples, text, length)
    found = {text[i : i + length] for i in positions}
    grams = [gram for sample in samples for gram in substrings(sample, length)]
    novel = sum(gram not in found for gram in grams) / len(grams) if grams else None
    while not positions and length > 1:  # no 8-gram in common: try shorter ones
        length -= 1
        positions = find_ngrams(samples, text, length)
    longest = ""
    while positions:
        longest = text[positions[0] : positions[0] + length]
        length += 1
        wanted = {gram for sample in samples for gram in substrings(sample, length)}
        positions = [i for i in positions if text[i : i + length] in wanted]
    return Overlap(longest, novel)


def find_ngrams(samples: list[str], text: str, n: int) -> list[int]:
    """Return the positions in a text at which an n-gram of a sample starts, in order."""
    wanted = {gram for sample in samples for gram in substrings(sample, n)}
    return [i for i, gram in enumerate(substrings(text, n)) if gram in wanted]


def substrings(text: str, length: int) -> Iterator[str]:
    """Yield all substrings of ``length`` characters, in order."""
    return (text[i : i + length] for i in range(len(text) - length + 1))
