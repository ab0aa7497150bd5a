"""What the program says beside its results: on stderr, in one line."""

import sys


def notice(message: str) -> None:
    """Say one line on stderr."""
    print(f"notice: {' '.join(message.split())}", file=sys.stderr, flush=True)
