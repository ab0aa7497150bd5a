"""Characters to ids and back. A vocabulary is a string of distinct characters."""

from typing import Literal

import torch
from torch import Tensor

from nanogpt.errors import UserError

OnUnknown = Literal["error", "skip"]  # how to treat a character outside the vocabulary


class Tokenizer:
    """Map characters to their indices in a vocabulary.

    Args:
        vocabulary: distinct characters; the id of a character is its index.

    Raises:
        UserError: if the vocabulary is empty or repeats a character.
    """

    def __init__(self, vocabulary: str) -> None:
        codepoints = _codepoints(vocabulary)
        if len(codepoints) == 0 or len(set(vocabulary)) < len(vocabulary):
            raise UserError(f"a vocabulary is one or more distinct characters, not {vocabulary!r}")
        self.vocabulary, self._characters = vocabulary, frozenset(vocabulary)
        self._codepoints = codepoints  # (V)
        self._ids = torch.full((int(codepoints.max()) + 2,), -1)  # the last entry: all above
        self._ids[codepoints] = torch.arange(len(codepoints))
        self.dtype = torch.uint8 if len(vocabulary) <= 256 else torch.int32

    @classmethod
    def from_text(cls, text: str) -> "Tokenizer":
        """Return the tokenizer of a text's distinct characters, in Unicode order."""
        return cls("".join(sorted(set(text))))

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text, (len(text),), as uint8 if they fit, else int32.

        Raises:
            UserError: if a character is not in the vocabulary; names the first and its position.
        """
        ids = self._ids[_codepoints(text).clamp(max=len(self._ids) - 1)]
        if bool((ids < 0).any()):
            position = int((ids < 0).nonzero()[0, 0])
            more = "…" if len(self.vocabulary) > 100 else ""
            raise UserError(
                f"the character {text[position]!r} at position {position} is not in the vocabulary "
                f"of {len(self.vocabulary)} characters: {self.vocabulary[:100]!r}{more}"
            )
        return ids.to(self.dtype)

    def drop_unknown(self, text: str, on_unknown: OnUnknown) -> str:
        """Return a text without the characters that are not in the vocabulary.

        Raises:
            UserError: if there are any and ``on_unknown`` is ``error``.
        """
        kept = "".join(character for character in text if character in self._characters)
        if len(kept) < len(text) and on_unknown == "error":
            try:
                self.encode(text)
            except UserError as error:
                raise UserError(
                    f"{error}; pass --on_unknown skip to drop such characters"
                ) from error
        return kept

    def decode(self, ids: Tensor) -> str:
        """Return the text of ids of shape (N,)."""
        codepoints = self._codepoints[ids.long().cpu()].int()
        return codepoints.numpy().tobytes().decode("utf-32-le", "surrogatepass")


def _codepoints(text: str) -> Tensor:
    raw = bytearray(text.encode("utf-32-le", "surrogatepass"))
    return torch.frombuffer(raw, dtype=torch.int32).long() if raw else torch.zeros(0).long()
