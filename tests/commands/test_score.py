"""``score``: the printed numbers, the page, and one-line errors."""

import errno
import io
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nanogpt.commands import score
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.insight.html_report import Summary
from nanogpt.insight.printable import printable_line
from nanogpt.runs import find_model
from nanogpt.text.pastiche import pastiche
from tests.command_lines import Run
from tests.model_files import change_weights

TEXT = pastiche()[2000:].lstrip()[:900]
BEST = Path("lightning_logs/version_0/checkpoints/best.safetensors")
CHECKPOINT: list[bytes] = []  # trained once for all tests


@pytest.fixture
def trained(fit: Run) -> None:
    """Write a run folder with a checkpoint, and a text to score."""
    if CHECKPOINT:
        BEST.parent.mkdir(parents=True)
        BEST.write_bytes(CHECKPOINT[0])
    else:
        assert fit().code == 0
        CHECKPOINT.append(BEST.read_bytes())
    Path("my.txt").write_text(TEXT, encoding="utf-8")


def numbers(out: str) -> dict[str, str]:
    """Return the name and the value of each line but the first."""
    lines = [re.split(r"  +", line, maxsplit=1) for line in out.splitlines()[1:]]
    return {name: value.split()[0] for name, value in lines}


def set_stdin(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))


def shown(page: str) -> list[str]:
    return re.findall(r'data-t="[^"]*">([^<]*)</span>', page)


@pytest.mark.usefixtures("trained")
def test_numbers_are_those_of_one_forward_pass(run: Run) -> None:
    Path("short.txt").write_text(TEXT[:8], encoding="utf-8")  # as long as the block
    checkpoint = load_checkpoint()
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    ids = tokenizer.encode("\n" + TEXT[:8]).long()
    with torch.no_grad():
        losses = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none").double()
    loss = losses.mean()
    outcome = run("score", "--text", "short.txt")
    assert outcome.code == 0, outcome.err
    first = outcome.out.splitlines()[0].replace("\\", "/")
    assert first.strip() == "short.txt under lightning_logs/version_0/checkpoints/best.safetensors"
    found = numbers(outcome.out)
    assert found["characters"] == "8"
    assert float(found["loss"]) == pytest.approx(loss.item(), abs=6e-5)
    assert float(found["bits per character"]) == pytest.approx(loss.item() * 1.442695, abs=6e-5)
    assert float(found["perplexity"]) == pytest.approx(loss.exp().item(), rel=1e-5)
    position = int(losses.argmax())
    bits, excerpt = losses[position].item() * 1.442695, printable_line(TEXT[: position + 1])
    assert f"({bits:.1f} bits) on line 1: “{excerpt}”" in outcome.out
    assert outcome.err.startswith("scoring with ")
    assert outcome.err.count("\n") == 1


def test_line_of_the_most_surprising_character_counts_unknown_characters() -> None:
    content = "zero, one\nzwei\nhere and\tthere, and 'everywhere\nfive"
    vocabulary = "".join({*content} - {*"\nzw"})
    known = [c for c in content if c in vocabulary]
    summary, nats = Summary("a", "b", len(known), 0.1), torch.zeros(len(known))
    nats[known.index("'")] = 7
    message = score.report(summary, content, vocabulary, nats)
    assert message.endswith("‘'’ (10.1 bits) on line 3: “…one⏎zwei⏎here and⇥there, and '”")
    nats[0] = 8
    message = score.report(summary, content, vocabulary, nats)
    assert message.endswith("‘e’ (11.5 bits) on line 1: “ze”")


@pytest.mark.usefixtures("trained")
def test_page_contains_the_text_and_replaces_an_earlier_page(run: Run) -> None:
    before = {*Path().rglob("*")}
    outcome = run("score", "--text", "my.txt", "--html", "page.html")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[-1] == "page.html"
    page = Path("page.html").read_text(encoding="utf-8")
    assert len(shown(page)) == len(TEXT)
    assert outcome.out == run("score", "--text", "my.txt").out
    for value in (numbers(outcome.out)[name] for name in ("loss", "bits per character")):
        assert value in page
    Path("my.txt").write_text(TEXT[:50], encoding="utf-8")
    assert run("score", "--text", "my.txt", "--html", "page.html").code == 0
    assert len(shown(Path("page.html").read_text(encoding="utf-8"))) == 50
    assert {*Path().rglob("*")} - before == {Path("page.html")}


@pytest.mark.usefixtures("trained")
def test_long_text_is_scored_completely_and_shown_in_part(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("score", "--text", "my.txt").out
    monkeypatch.setattr(score, "MAX_SHOWN", 100)
    outcome = run("score", "--text", "my.txt", "--html", "page.html")
    assert outcome.out == whole
    note = "the page shows the first 100 of 900 characters"
    assert note in outcome.err
    page = Path("page.html").read_text(encoding="utf-8")
    assert note in page
    assert len(shown(page)) == 100
    assert "shows" not in run("score", "--text", "my.txt").err


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file names")
@pytest.mark.usefixtures("trained")
def test_control_characters_of_names_and_text_are_escaped(run: Run) -> None:
    folder, name = Path("\x1b[2J\x9b31m"), "\x07.txt"
    Path("lightning_logs/version_0").rename(folder)
    Path(name).write_text("\x1b[31m" + TEXT, encoding="utf-8")
    page = "\x1b.html"
    options = (f"--ckpt_path={folder}", f"--html={page}", "--on_unknown=skip")
    outcome = run("score", f"--text={name}", *options)
    assert outcome.code == 0, outcome.err
    shown = outcome.out + outcome.err + Path(page).read_text(encoding="utf-8")
    assert not {"\x1b", "\x9b", "\x07"} & {*shown}


@pytest.mark.usefixtures("trained")
def test_stdin_is_read_like_a_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("score", "--text", "my.txt").out.splitlines()[1:]
    raws = {
        "utf-8": b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode(),
        "utf-16": TEXT.replace("\n", "\r").encode("utf-16"),
    }
    for encoding, raw in raws.items():
        set_stdin(monkeypatch, raw)
        outcome = run("score", "--text=-", f"--encoding={encoding}")
        assert outcome.code == 0, outcome.err
        assert outcome.out.splitlines()[1:] == expected
        assert "standard input under" in outcome.out


@pytest.mark.usefixtures("trained")
def test_unknown_characters_are_refused_or_skipped(run: Run) -> None:
    Path("odd.txt").write_text("é" + "@\n@\n" + TEXT.replace("e", "eé"), encoding="utf-8")
    Path("plain.txt").write_text("\n\n" + TEXT, encoding="utf-8")
    refused = run("score", "--text=odd.txt")
    assert refused.code == 2
    assert "'é' at position 0" in refused.err
    assert "--on_unknown skip" in refused.err
    skipped = run("score", "--text=odd.txt", "--on_unknown=skip", "--html=odd.html")
    assert skipped.code == 0, skipped.err
    message = f"{TEXT.count('e') + 3} of {len(TEXT) + TEXT.count('e') + 5} characters are unknown"
    assert message in skipped.err
    assert message in Path("odd.html").read_text(encoding="utf-8")
    plain = run("score", "--text=plain.txt")
    found, expected = numbers(skipped.out), numbers(plain.out)
    assert found == expected
    line = re.compile(r"on line (\d+)")
    assert line.findall(skipped.out) == line.findall(plain.out)


MISTAKES = [
    # options, expected part of the error
    ([], "--text is required: write --text FILE, or --text - for standard input"),
    (["--txt=my.txt"], "did you mean --text?"),
    (["my.txt"], "unexpected argument 'my.txt'"),
    (["--text=missing.txt"], "'missing.txt' does not exist"),
    (["--text=."], "'.' is not a regular file"),
    (["--text=loop"], "'loop' cannot be read: Too many levels of symbolic links"),
    ([f"--text={'n' * 300}"], "cannot be read: File name too long"),
    (["--text=caf\udce9.txt"], r"'caf\udce9.txt' does not exist"),
    (["--text=empty.txt"], "empty"),
    (["--text=binary.txt"], "byte 3 is 0xff"),
    (["--text=-"], "'standard input' is not utf-8: byte 1"),
    (["--text=my.txt", "--encoding=utf-9"], "unknown encoding 'utf-9'"),
    (["--text=foreign.txt", "--on_unknown=skip"], "no character of the text"),
    (["--text=foreign.txt"], "'é' at position 0"),
    (["--text=my.txt", "--on_unknown=guess"], "error, skip"),
    (["--text=my.txt", "--ckpt_path=missing.safetensors"], "missing.safetensors"),
    (["--text=my.txt", "--ckpt_path=my.txt"], "cannot be read as a nanogpt model"),
    (
        ["--text=my.txt", "--ckpt_path=nan.safetensors"],
        "the model returned NaN: its training diverged",
    ),
    (["--text=my.txt", "--html=my.txt"], "'my.txt' already exists"),
    (["--text=my.txt", "--html=empty.txt"], "'empty.txt' already exists"),
    (["--text=my.txt", "--html=late.html"], "'late.html' already exists"),
    (["--text=my.txt", "--html=lightning_logs"], "is a folder"),
    (["--text=my.txt", "--html="], "is a folder"),
    (["--text=my.txt", "--html=no/page.html"], "folder that does not exist"),
    (["--text=my.txt", "--html=my.txt/page.html"], "folder that does not exist"),
    (["--text=my.txt", f"--html={'n' * 300}"], "cannot be written (File name too long)"),
    (["--text=my.txt", f"--html={'n' * 300}/page.html"], "cannot be written (File name too long)"),
    (["--text=my.txt", "--html=loop"], "'loop' already exists"),
    (["--text=my.txt", "--html=loop/page.html"], "folder that does not exist"),
    (["--text=my.txt", f"--ckpt_path={'n' * 300}"], "no model at"),
    (["--text=my.txt", "--ckpt_path=loop"], "no model at"),
    (["--text=my.txt", "--ckpt_path=a\0b"], r"no model at 'a\x00b'"),
]


@pytest.mark.usefixtures("trained")
def test_mistake_gets_a_one_line_error_and_changes_no_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"abc\xff")
    Path("foreign.txt").write_text("éé", encoding="utf-8")
    Path("loop").symlink_to("loop")
    Path("late.html").write_text(" " * 1000 + 'content="nanogpt score"', encoding="utf-8")
    nan = Path("nan.safetensors")
    change_weights(find_model(), nan, lambda weights: weights["lm_head.weight"].fill_(3e38))
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    for options, expected in MISTAKES:
        set_stdin(monkeypatch, b"a\xff")
        outcome = run("score", *options)
        assert outcome.code == 2, options
        *progress, error = outcome.err.splitlines()
        assert error.startswith("error: "), outcome.err
        assert expected in error
        assert bool(progress) == ("--ckpt_path=nan.safetensors" in options)
        assert outcome.out == ""
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("trained")
def test_full_disk_leaves_the_earlier_page_intact(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("score", "--text=my.txt", "--html=page.html")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    outcome = run("score", "--text=my.txt", "--html=page.html")
    assert outcome.code == 2
    assert "page.html" in outcome.err.splitlines()[-1]
    assert numbers(outcome.out)["characters"] == "900"
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


@pytest.mark.usefixtures("trained")
def test_names_that_are_not_utf_8_are_escaped(run: Run) -> None:
    text = Path("caf\udce9.txt")
    try:
        Path("my.txt").rename(text)
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    outcome = run("score", f"--text={text}", "--html=\udcfc.html")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{'':20}caf\\udce9.txt under lightning_logs{os.sep}")
    assert outcome.err.splitlines()[-1] == r"\udcfc.html"
    assert r"caf\udce9.txt" in Path("\udcfc.html").read_text(encoding="utf-8")


def test_error_without_a_run_names_the_command_that_trains_one(run: Run, text: str) -> None:
    outcome = run("score", "--text", text)
    assert outcome.code == 2
    assert "fit --config" in outcome.err
