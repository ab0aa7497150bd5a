"""Printable representations of characters."""

from unicodedata import category

SYMBOLS = {"\n": "⏎", " ": "␣", "\t": "⇥"}
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, line separators


def printable(character: str) -> str:
    r"""Return a character, or a symbol or an escape if it is not printable.

    A line break, a space and a tab become a symbol. Other controls, surrogates and characters that
    change how their neighbors are displayed become an escape such as ``\x00`` or ``\u202e``.
    """
    if character in SYMBOLS:
        return SYMBOLS[character]
    if category(character) in UNPRINTABLE:
        return character.encode("unicode_escape").decode()
    return character


def printable_line(text: str) -> str:
    """Return a text on one line: spaces unchanged, all other characters printable."""
    return "".join(c if c == " " else printable(c) for c in text)
