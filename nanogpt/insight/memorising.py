"""Does a model write or recite? How much of its text also stands in what it was trained on."""

from collections.abc import Iterator
from dataclasses import dataclass

GRAM = 8  # characters: about a word and a half


@dataclass(frozen=True)
class Copied:
    """What of some samples also stands in the training text.

    ``longest`` is the longest stretch of a sample that does; ``new`` is the share of the samples'
    8-grams that do not, or None if no sample has 8 characters.
    """

    longest: str
    new: float | None


def copied(samples: list[str], text: str) -> Copied:
    """Look for every stretch of some samples in a text.

    One pass over the text finds where one of the samples' 8-grams begins; only there can a longer
    copied stretch begin, so each further length looks at the places that are left.
    """
    length = GRAM
    places = beginnings(samples, text, length)
    found = {text[i : i + GRAM] for i in places}
    grams = [gram for sample in samples for gram in stretches(sample, GRAM)]
    new = sum(gram not in found for gram in grams) / len(grams) if grams else None
    while not places and length > 1:  # nothing as long as that: look for less
        length -= 1
        places = beginnings(samples, text, length)
    longest = ""
    while places:
        longest = text[places[0] : places[0] + length]
        length += 1
        wanted = {gram for sample in samples for gram in stretches(sample, length)}
        places = [i for i in places if text[i : i + length] in wanted]
    return Copied(longest, new)


def beginnings(samples: list[str], text: str, length: int) -> list[int]:
    """Return the places in a text at which a stretch of a sample begins, in order."""
    wanted = {gram for sample in samples for gram in stretches(sample, length)}
    return [i for i, gram in enumerate(stretches(text, length)) if gram in wanted]


def stretches(text: str, length: int) -> Iterator[str]:
    """Yield all stretches of a text that are ``length`` characters long, in order."""
    return (text[i : i + length] for i in range(len(text) - length + 1))
