"""How a character is written where it must be seen."""

from unicodedata import category

SIGNS = {"\n": "⏎", " ": "␣", "\t": "⇥"}
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, surrogate, line and paragraph ends


def visible(character: str) -> str:
    r"""Return what stands for a character: itself, if it can be seen.

    A line break, a space and a tab get a sign of their own, other controls, surrogates and what
    changes how its neighbours are seen an escape such as ``\x00`` or ``\u202e``.
    """
    if character in SIGNS:
        return SIGNS[character]
    if category(character) not in UNSEEN:
        return character
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str) -> str:
    """Return a text with its spaces as they are and all else that cannot be seen made visible."""
    return "".join(c if c == " " else visible(c) for c in text)
