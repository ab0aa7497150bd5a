"""Any file as a corpus is used, or refused in one line that says what to do."""

import os
from collections.abc import Callable
from pathlib import Path
from string import printable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt.errors import UserError
from nanogpt.text.files import decode_text
from nanogpt.text.tokenizer import Tokenizer
from tests.bad_input.corpora import CORPORA, NAMES, NOT_FILES, TEXT, VALID
from tests.command_lines import Run, is_one_line

hypothesis_settings = settings(derandomize=True, deadline=None, max_examples=150)
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX file names and file types")


@pytest.fixture
def fit(run: Run, workplace: Path, tmp_path: Path) -> Callable[..., None]:
    """Train for one step on a file; an error must be one line that contains ``expected``."""

    def fit(path: str, encoding: str, expected: str | None) -> None:
        root = f"--trainer.default_root_dir={tmp_path / 'runs'}"
        options = (f"--data.corpus={path}", f"--data.encoding={encoding}", root)
        outcome = run("fit", "--config=base.yaml", *options, "--trainer.max_steps=1")
        if expected is None:
            assert outcome.code == 0, outcome.err
        else:
            assert outcome.code == 2
            assert is_one_line(outcome.err), outcome.err
            assert len(outcome.err) < 700
            assert expected in outcome.err

    return fit


def test_number_of_cases() -> None:
    assert len(CORPORA) + len(NAMES) + len(NOT_FILES) >= 135
    assert sum(expected is not None for _, _, expected in CORPORA.values()) + len(NOT_FILES) >= 84


@pytest.mark.parametrize("name", [name for name in CORPORA if not name.startswith("valid")])
def test_corpus_for_training(fit: Callable[..., None], tmp_path: Path, name: str) -> None:
    raw, encoding, expected = CORPORA[name]
    (tmp_path / "corpus").write_bytes(raw)
    fit(str(tmp_path / "corpus"), encoding, expected)


@pytest.mark.parametrize("name", [name for name in CORPORA if name.startswith("valid")])
def test_valid_text_can_be_scored(run: Run, workplace: Path, tmp_path: Path, name: str) -> None:
    raw, encoding, _ = CORPORA[name]
    (tmp_path / "corpus").write_bytes(raw + "e\n".encode(encoding.removesuffix("-sig")))
    outcome = run(
        "score", f"--text={tmp_path / 'corpus'}", f"--encoding={encoding}", "--on_unknown=skip"
    )
    assert outcome.code == 0 or "utf-16" in encoding or "utf-32" in encoding, outcome.err


@pytest.mark.parametrize("name", list(VALID)[:8])
def test_unusual_text_can_be_trained_on(
    fit: Callable[..., None], tmp_path: Path, name: str
) -> None:
    (tmp_path / "corpus").write_bytes(VALID[name].encode())
    fit(str(tmp_path / "corpus"), "utf-8", None)


def test_100_000_distinct_characters_can_be_scored(
    run: Run, workplace: Path, tmp_path: Path
) -> None:
    many = "".join(chr(c) for c in range(0x4E00, 0x4E00 + 100_000) if not 0xD800 <= c < 0xE000)
    (tmp_path / "corpus").write_text(many + printable, encoding="utf-8")
    outcome = run("score", f"--text={tmp_path / 'corpus'}", "--on_unknown=skip")
    assert outcome.code == 0, outcome.err
    assert len(Tokenizer.from_text(many).encode(many)) == len(many)


@posix
@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_unusual_file_name_is_accepted(
    run: Run, workplace: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text(TEXT, encoding="utf-8")
    outcome = run("score", f"--text={tmp_path / name}", "--on_unknown=skip")
    assert outcome.code == 0, outcome.err


@posix
@pytest.mark.parametrize("name", NOT_FILES, ids=lambda name: ascii(name)[:30])
def test_missing_or_special_file_is_refused(
    fit: Callable[..., None], tmp_path: Path, workplace: Path, name: str
) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("missing")
    fit(str(tmp_path / name) if name.isalpha() else name, "utf-8", "the corpus")


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root can read any file")
def test_unreadable_file_is_refused(fit: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "closed").write_text(TEXT, encoding="utf-8")
    (tmp_path / "closed").chmod(0)
    fit(str(tmp_path / "closed"), "utf-8", "cannot be read")


@hypothesis_settings
@given(st.binary(max_size=60), st.sampled_from(["utf-8", "utf-16", "utf-32", "utf-7", "idna", "x"]))
def test_any_bytes_decode_or_raise_user_error(raw: bytes, encoding: str) -> None:
    try:
        text = decode_text(raw, encoding, "the corpus 'x'", "--data.encoding")
    except UserError:
        pass
    else:
        assert text
        assert "\r" not in text
        tokenizer = Tokenizer.from_text(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@hypothesis_settings
@given(st.text(st.characters(exclude_categories=()), min_size=1), st.text(max_size=30))
def test_unknown_characters_of_any_prompt_are_dropped_or_refused(text: str, prompt: str) -> None:
    tokenizer = Tokenizer.from_text(text)
    kept = tokenizer.drop_unknown(prompt, "skip")
    assert kept == "".join(character for character in prompt if character in text)
    assert tokenizer.encode(kept).dtype in (torch.uint8, torch.int32)
    if kept != prompt:
        with pytest.raises(UserError, match="on_unknown"):
            tokenizer.drop_unknown(prompt, "error")
