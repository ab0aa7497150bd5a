"""Read and decode the user's text files, with one-line errors."""

import sys
from pathlib import Path

from nanogpt.errors import UserError


def read_file(path: str, name: str, hint: str, searched: str = "") -> bytes:
    """Return the bytes of a file; raise UserError if it does not exist or cannot be read.

    Args:
        path: path of a regular file; reading a FIFO or a device might never end.
        name: what to call the file in an error message, such as ``the corpus``.
        hint: the end of the error message: the option to pass and the values it takes.
        searched: where a file that does not exist was searched for, such as `` in '/home'``.
    """
    try:
        if not Path(path).is_file():
            state = "is not a file" if Path(path).exists() else f"does not exist{searched}"
            raise UserError(f"{name} {path!r} {state}; {hint}")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{name} {path!r} cannot be read: {error.strerror}") from error


def decode_text(raw: bytes, encoding: str, name: str, option: str) -> str:
    r"""Decode the bytes of a text.

    Removes a byte order mark and converts line endings to ``\n``. Raises UserError if the text is
    empty or not in that encoding, with ``name``, the text's, and ``option``, which sets the
    encoding.
    """
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        position = len(raw) - len(error.object) + error.start  # utf-8-sig does not count the mark
        raise UserError(
            f"{name} is not {encoding}: byte {position} is 0x{raw[position]:02x} ({error.reason}); "
            f"pass its encoding with {option}"
        ) from error
    except (LookupError, ValueError) as error:
        raise UserError(f"unknown encoding {encoding!r}; try utf-8, latin-1 or utf-16") from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"{name} is empty; pass a file that contains text")
    return text


def read_text(path: str, encoding: str, name: str, option: str) -> tuple[str, str]:
    """Return the name and the text of a file, or of standard input for ``-``, or raise UserError.

    Args:
        path: path of the file, or ``-``.
        encoding: text encoding of the file.
        name: what to call the text in an error message, such as ``the prompt``.
        option: the option that takes the path.
    """
    if path == "-":
        path_name, raw = "standard input", sys.stdin.buffer.read()
    else:
        hint = f"{option} takes the path of a text file, or - for standard input"
        path_name, raw = path, read_file(path, name, hint)
    return path_name, decode_text(raw, encoding, f"{name} {path_name!r}", "--encoding")
