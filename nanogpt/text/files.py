"""Text files of the user's own: read and decoded, or refused in one line."""

import sys
from pathlib import Path

from nanogpt.errors import UserError


def read_file(path: str, what: str, takes: str) -> bytes:
    """Return the bytes of a file.

    Args:
        path: of a regular file: a FIFO or a device could be read for ever.
        what: it is, for a mistake's message, such as ``the corpus``.
        takes: the option that names it, and what that takes.

    Raises:
        UserError: if there is no such file, or it cannot be read.
    """
    try:
        if not Path(path).is_file():
            state = "is not a file" if Path(path).exists() else "does not exist"
            raise UserError(f"{what} {path!r} {state}; {takes}")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path!r} cannot be read: {error.strerror}") from error


def decode_text(raw: bytes, encoding: str, what: str, option: str) -> str:
    r"""Decode the bytes of a user's text.

    A byte order mark is dropped, and Windows' line ends become ``\n``, as Python reads text.

    Raises:
        UserError: if there is no text in it, or it is not in that encoding; it says ``what`` is
            wrong and names the ``option`` that sets the encoding.
    """
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        place = len(raw) - len(error.object) + error.start  # utf-8-sig leaves the mark out
        raise UserError(
            f"{what} is not {encoding}: byte {place} is 0x{raw[place]:02x} ({error.reason}); "
            f"name its encoding with {option}"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"no encoding {encoding!r}; try utf-8, latin-1 or utf-16") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"{what} is empty; give one with some text in it")
    return text


def read_text(path: str, encoding: str, what: str, option: str) -> tuple[str, str]:
    """Return the name and the text of a file, ``-`` being standard input.

    Args:
        path: of the file.
        encoding: of its text.
        what: it is, for a mistake's message, such as ``the prompt``.
        option: that names it.

    Raises:
        UserError: if there is no such file, it is empty, or it is not text in that encoding.
    """
    name = "standard input" if path == "-" else path
    if path == "-":
        raw = sys.stdin.buffer.read()
    else:
        raw = read_file(path, what, f"{option} takes the path of a text file, or - for stdin")
    return name, decode_text(raw, encoding, f"{what} {name!r}", "--encoding")
