"""Stop strings: a text ends before the first of them."""

from collections.abc import Sequence

from nanogpt.errors import UserError


class StopStringFilter:
    """Filter a growing text, holding back what may be the beginning of a stop string.

    Args:
        stops: the stop strings.

    Raises:
        UserError: if one of them is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UserError("a stop string cannot be empty: pass one or more characters")
        self.stops, self.held, self.met = list(stops), "", False

    def feed(self, piece: str) -> str:
        """Add the next characters; return those that can be shown."""
        if self.met:
            return ""
        if not self.stops:
            return piece
        text = self.held + piece
        found = [
            (start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0
        ]
        if found:  # the one that ends first, so that the result does not depend on the pieces
            self.met, self.held = True, ""
            return text[: min(found)[1]]
        n_held = max(_overlap(text, stop) for stop in self.stops)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def rest(self) -> str:
        """Return the characters held back, at the end of the text."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of a text that begins a stop string."""
    longest = min(len(stop) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
