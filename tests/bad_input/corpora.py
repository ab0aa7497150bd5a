"""Corpora: bytes, their encoding, and what the error must contain, or None if they are valid."""

TEXT = "It is a truth universally acknowledged,\nthat a text in want of a model must be long.\n" * 9
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le",
             "utf-32-be", "latin-1", "cp1252", "ascii", "utf-7", "cp437", "mac-roman", "koi8-r",
             "shift_jis", "big5", "gb18030", "euc-kr", "iso-8859-15")  # fmt: skip
UNKNOWN_ENCODINGS = ("utf-9", "", "hex", "base64", "rot13", "zlib", "bz2", "quopri", "uu",
                "undefined", "None", "a/b", "../x", "é", "x" * 300)  # fmt: skip
LONE_SURROGATE = "\ud800"
NOT_UTF_8 = {
    "latin-1": "naïve".encode("latin-1"),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "binary": bytes(range(256)) * 4,
    "a zip": b"PK\x03\x04\x14\x00\xff\xfe",
    "a PNG": b"\x89PNG\r\n\x1a\n",
    "a pickle": b"\x80\x02}q\x00.",
    "gzip": b"\x1f\x8b\x08\x00",
    "a lone surrogate": LONE_SURROGATE.encode("utf-8", "surrogatepass"),
    "a low surrogate": b"abc\xed\xb0\x80",
    "a pair of surrogates (CESU-8)": b"\xed\xa0\xbd\xed\xb8\x80",
    "overlong": b"\xc0\xaf",
    "overlong NUL": b"abc\xc0\x80",
    "beyond Unicode": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "a stray byte at the end": TEXT.encode() + b"\x80",
    "cut in a character": "é".encode()[:1],
    "cut in an emoji": "🎭".encode()[:3],
    "a lead byte alone": b"a\xe2b",
    "0xff": b"\xff",
    "a big-endian byte order mark": b"\xfe\xff\0a",
}
MALFORMED = {
    "a lone surrogate": (LONE_SURROGATE.encode("utf-16-le", "surrogatepass"), "utf-16-le"),
    "a low surrogate, big": (b"\xdc\x00\0a", "utf-16-be"),
    "an odd number of bytes": (TEXT.encode("utf-16-le") + b"x", "utf-16-le"),
    "an odd number of bytes, with a byte order mark": (TEXT.encode("utf-16") + b"x", "utf-16"),
    "a surrogate in 32 bits": (LONE_SURROGATE.encode("utf-32-le", "surrogatepass"), "utf-32-le"),
    "beyond Unicode in 32 bits": (b"\0\0\x11\0", "utf-32-le"),
    "three bytes of four": (TEXT.encode("utf-32-le")[:-1], "utf-32-le"),
    "broken UTF-7": (b"+AAAA\xff", "utf-7"),
    "not ASCII": ("é".encode(), "ascii"),
    "not Shift JIS": (b"\x81", "shift_jis"),
    "not cp1252": (b"\x81", "cp1252"),
}
SHORT = {
    "nothing": "", "a space": " ", "a line break": "\n", "whitespace": " \t\n\r\v\f", "one character": "a",
    "two": "ab", "as long as a block": "abcdefgh", "a block and one character": "abcdefghi",
    "too short for a val split": "abcdefghi" * 2, "a val split shorter than a block": "ab" * 40, "NUL": "\0",
    "a byte order mark": "\ufeff", "two byte order marks": "\ufeff\ufeff", "an emoji": "🎭", "line breaks": "\r\n" * 20,
}  # fmt: skip
VALID = {
    "Windows line endings": TEXT.replace("\n", "\r\n"),
    "old Mac line endings": TEXT.replace("\n", "\r"),
    "mixed line endings": "a\r\nb\rc\n\r" * 60,
    "a byte order mark": "\ufeff" + TEXT,
    "byte order marks inside": "a\ufeffb" * 60,
    "NULs": "a\0b" * 90,
    "only NULs": "\0" * 200,
    "one character, repeated": "a" * 200,
    "only line breaks": "\n" * 200,
    "only spaces and tabs": " \t" * 100,
    "no line break": "abcdefgh" * 30,
    "emoji": "🎭a" * 100,
    "combining": "e\u0301" * 100,
    "right to left": "שלום\u202e" * 40,
    "control characters": "".join(map(chr, range(32))) * 8,
    "escape sequences": "\x1b[31mred\x1b[0m" * 20,
    "noncharacters": "\uffff\ufffe\U0010ffff" * 40,
    "replacement characters": "\ufffd" * 200,
    "separators of lines": "\u2028\u2029\x85" * 60,
    "markup": "<b>&amp;</b>{}[]%s$HOME`id`" * 9,
    "all of Latin": "".join(map(chr, range(0x20, 0x250))) * 2,
}

CORPORA: dict[str, tuple[bytes, str, str | None]] = {
    **{f"not UTF-8: {name}": (raw, "utf-8", "--data.encoding") for name, raw in NOT_UTF_8.items()},
    **{f"malformed: {name}": (*given, "--data.encoding") for name, given in MALFORMED.items()},
    **{f"unknown encoding {e[:20]!r}": (TEXT.encode(), e, "try utf-8") for e in UNKNOWN_ENCODINGS},
    **{f"short: {name}": (text.encode(), "utf-8", "text") for name, text in SHORT.items()},
    **{f"valid: {name}": (text.encode(), "utf-8", None) for name, text in VALID.items()},
    **{f"valid: in {e}": (TEXT.encode(e), e, None) for e in ENCODINGS},
    "short: in UTF-16": (b"\xff\xfe", "utf-16", "empty"),
    "short: in UTF-32": (b"\xff\xfe\0\0", "utf-32", "empty"),
}  # fmt: skip
NAMES = (
    "two\nlines",
    "a tab\t",
    "é☃",
    "🎭",
    "-dash",
    " ",
    "'",
    '"',
    "$HOME",
    "%s",
    "{}",
    "a,b",
    "x" * 200,
)
NOT_FILES = ("missing", "", ".", "..", "/", "a\0b", "n" * 300, "there/../missing", "text/below", "pipe",
            "loop", "/dev/zero", "/dev/full", "/dev/tty", "folder", "dangling", "tiny_shakspeare",
            "http://127.0.0.1:1/x", "~/missing", "*")  # fmt: skip
