"""How much of a model's samples is copied from its training text."""

from collections.abc import Iterable
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

    def ngrams(n: int) -> list[str]:
        """Return the n-grams of the samples."""
        return [sample[i : i + n] for sample in samples for i in range(len(sample) - n + 1)]

    def find(n: int, positions: Iterable[int]) -> list[int]:
        """Return the positions in the text, of those given, at which such an n-gram starts."""
        wanted = set(ngrams(n))
        return [i for i in positions if text[i : i + n] in wanted]

    n = NGRAM_SIZE
    positions = find(n, range(len(text)))
    found = {text[i : i + n] for i in positions}
    grams = ngrams(n)
    novel = sum(gram not in found for gram in grams) / len(grams) if grams else None
    while not positions and n > 1:  # no 8-gram in common: try shorter ones
        n -= 1
        positions = find(n, range(len(text)))
    longest = ""
    while positions:
        longest = text[positions[0] : positions[0] + n]
        n += 1
        positions = find(n, positions)
    return Overlap(longest, novel)
