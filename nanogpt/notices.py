"""Notices on stderr, and the program's name in messages."""

import shlex
import sys
from pathlib import Path


def notice(message: str) -> None:
    """Print a one-line notice on stderr."""
    print(f"notice: {' '.join(message.split())}", file=sys.stderr, flush=True)


def program() -> str:
    """Return the command that starts this program, for messages and help texts.

    It is ``python cli.py`` or ``python -m nanogpt`` if this process was started so, and otherwise
    the installed ``nanogpt``.
    """
    script = Path(sys.argv[0] if sys.argv else "")
    if script.name == "cli.py":
        return shlex.join(["python", str(script)])
    return "python -m nanogpt" if script.name == "__main__.py" else "nanogpt"
