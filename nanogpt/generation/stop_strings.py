"""Stop strings: text ends before the first of them, which is never shown."""

from collections.abc import Sequence

from nanogpt.errors import UserError


class StopStringFilter:
    """Watches a text as it grows, and lets out what cannot be part of a stop string.

    Args:
        stops: the strings before the first of which the text ends.

    Raises:
        UserError: if one of them is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UserError("a stop string cannot be empty, since every text begins with that")
        self.stops, self.held, self.met = list(stops), "", False

    def feed(self, piece: str) -> str:
        """Take the next characters; return those that may be shown by now."""
        if self.met:
            return ""
        if not self.stops:
            return piece
        text = self.held + piece
        found = [
            (place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0
        ]
        if found:  # the one that ends first counts, in whatever pieces the text comes
            self.met, self.held = True, ""
            return text[: min(found)[1]]
        hold = max(_overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def rest(self) -> str:
        """Return, at the end of the text, what was held back."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that begins a stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
