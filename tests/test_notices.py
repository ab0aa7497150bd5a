"""Control characters never reach a terminal, and a file gets the text unchanged."""

import io
import sys

import pytest

from nanogpt.commands.main import fail
from nanogpt.notices import escape_controls, escape_for, notice, print_message, print_text

CONTROLS = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0))))


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_all_control_characters_but_newline_and_tab_are_escaped() -> None:
    for character in CONTROLS:
        expected = character if character in "\n\t" else f"\\x{ord(character):02x}"
        assert escape_controls(f"a{character}b") == f"a{expected}b"
    others = "".join(chr(c) for c in range(0x3000) if chr(c) not in CONTROLS) + "🎭\udce9"
    assert escape_controls(others) == others


def test_text_for_a_terminal_is_escaped_and_other_text_is_not() -> None:
    assert escape_for(Terminal(), "\x1b[31mred\n") == "\\x1b[31mred\n"
    assert escape_for(io.StringIO(), "\x1b[31mred\n") == "\x1b[31mred\n"


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_messages_are_always_escaped(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    notice("a \x1b]0;title\x07\x9b31m\nb")
    print_message("c\r\x1b[2Kd")
    assert fail("e\x08\x1bc") == 2
    assert stream.getvalue() == (
        "notice: a \\x1b]0;title\\x07\\x9b31m b\nc\\x0d\\x1b[2Kd\nerror: e\\x08\\x1bc\n"
    )


def test_printed_text_is_escaped_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = {}
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stream)
        print_text("a\x1b[2J\tb")
        printed[stream.isatty()] = stream.getvalue()
    assert printed == {True: "a\\x1b[2J\tb\n", False: "a\x1b[2J\tb\n"}
