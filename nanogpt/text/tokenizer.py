"""Characters to ids and back. A vocabulary is a plain string of distinct characters."""

from typing import Literal

import torch
from torch import Tensor

from nanogpt.errors import UserError

OnUnknown = Literal["error", "skip"]  # what to do with a character that is not in a vocabulary


class Tokenizer:
    """Maps each character of a vocabulary to its place in it.

    Args:
        vocabulary: the characters, each once; the id of a character is its index.

    Raises:
        UserError: if the vocabulary is empty or repeats a character.
    """

    def __init__(self, vocabulary: str) -> None:
        codepoints = _codepoints(vocabulary)
        if len(codepoints) == 0 or len(set(vocabulary)) < len(vocabulary):
            raise UserError(f"a vocabulary is one or more distinct characters, not {vocabulary!r}")
        self.vocabulary, self._known = vocabulary, frozenset(vocabulary)
        self._codepoints = codepoints  # (V)
        self._ids = torch.full((int(codepoints.max()) + 2,), -1)  # the last stands for all above
        self._ids[codepoints] = torch.arange(len(codepoints))
        self.dtype = torch.uint8 if len(vocabulary) <= 256 else torch.int32

    @classmethod
    def of(cls, text: str) -> "Tokenizer":
        """Make the tokenizer of a text: its distinct characters, in the order of Unicode."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text, shape (len(text),), in the smallest of uint8 and int32.

        Raises:
            UserError: at the first character that is not in the vocabulary, naming its place.
        """
        ids = self._ids[_codepoints(text).clamp(max=len(self._ids) - 1)]
        if bool((ids < 0).any()):
            place = int((ids < 0).nonzero()[0, 0])
            more = "…" if len(self.vocabulary) > 100 else ""
            raise UserError(
                f"the character {text[place]!r} at position {place} is not in the vocabulary of "
                f"{len(self.vocabulary)} characters: {self.vocabulary[:100]!r}{more}"
            )
        return ids.to(self.dtype)

    def known(self, text: str, on_unknown: OnUnknown) -> str:
        """Return a text without the characters that are not in the vocabulary.

        Raises:
            UserError: at the first of them, if ``on_unknown`` is ``error``.
        """
        kept = "".join(character for character in text if character in self._known)
        if len(kept) < len(text) and on_unknown == "error":
            try:
                self.encode(text)
            except UserError as error:
                raise UserError(f"{error}; --on_unknown skip leaves such characters out") from error
        return kept

    def decode(self, ids: Tensor) -> str:
        """Return the text of ids of shape (N,)."""
        codepoints = self._codepoints[ids.long().cpu()].int()
        return codepoints.numpy().tobytes().decode("utf-32-le", "surrogatepass")


def _codepoints(text: str) -> Tensor:
    raw = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(raw, dtype=torch.int32).long() if raw else torch.zeros(0).long()
