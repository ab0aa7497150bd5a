"""Stop strings: a text ends before the first of them."""

from collections.abc import Sequence

from nanogpt.errors import UserError


class StopStringFilter:
    """Filter a growing text, holding back what may be the beginning of a stop string.

    An empty stop string raises UserError.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if "" in stops:
            raise UserError("a stop string cannot be empty: pass one or more characters")
        self.stops, self.held, self.stopped = list(stops), "", False

    def feed(self, piece: str) -> str:
        """Add the next characters; return those that can be shown."""
        if self.stopped:
            return ""
        text = self.held + piece
        found = [
            (start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0
        ]
        if found:  # the one that ends first, so that the result does not depend on the pieces
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        starts = (stop[:n] for stop in self.stops for n in range(min(len(stop), len(text) + 1)))
        n_held = max((len(start) for start in starts if text.endswith(start)), default=0)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Return the characters held back, at the end of the text."""
        held, self.held = self.held, ""
        return held
