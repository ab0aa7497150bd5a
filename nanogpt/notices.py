"""Messages and text on the terminal without control characters, and the program's name."""

import shlex
import sys
from pathlib import Path
from typing import TextIO

# C0 controls, DEL and C1 controls, which a terminal may take as commands; not newline and tab
ESCAPES = {c: f"\\x{c:02x}" for c in (*range(0x20), *range(0x7F, 0xA0)) if chr(c) not in "\n\t"}


def escape_controls(text: str) -> str:
    r"""Return a text with escapes such as ``\x1b`` for control characters but newline and tab."""
    return text.translate(ESCAPES)


def escape_for(stream: TextIO, text: str) -> str:
    """Return the text to write to a stream: with escapes on a terminal, else unchanged."""
    return escape_controls(text) if stream.isatty() else text


def print_text(text: str) -> None:
    """Print a text that contains names or text of others on stdout; see ``escape_for``."""
    print(escape_for(sys.stdout, text), flush=True)


def print_message(message: str) -> None:
    """Print a message on stderr, without control characters."""
    print(escape_controls(message), file=sys.stderr, flush=True)


def notice(message: str) -> None:
    """Print a one-line notice on stderr."""
    print_message(f"notice: {' '.join(message.split())}")


def program() -> str:
    """Return the command that starts this program, for messages and help texts.

    It is ``python cli.py`` or ``python -m nanogpt`` if this process was started so, and otherwise
    the installed ``nanogpt``.
    """
    script = Path(sys.argv[0] if sys.argv else "")
    if script.name == "cli.py":
        return shlex.join(["python", str(script)])
    return "python -m nanogpt" if script.name == "__main__.py" else "nanogpt"
