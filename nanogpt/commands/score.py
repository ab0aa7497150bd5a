"""``score``: the loss of a text under a trained model, and an HTML page of its surprisal."""

import math
import os
from pathlib import Path

from jsonargparse import ArgumentParser
from torch import Tensor

from nanogpt import kernels
from nanogpt.atomic import write_atomically
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.generation.generate import DIVERGED, start_ids
from nanogpt.hardware import best_device
from nanogpt.insight.html_report import GENERATOR, Summary, render_page
from nanogpt.insight.printable import printable, printable_line
from nanogpt.insight.surprisal import surprisal
from nanogpt.notices import print_message, print_text, program
from nanogpt.option_errors import parse_options
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown

MAX_SHOWN = 200_000  # characters on a page: more slow a browser down
TOOLTIP_CHARACTERS = 5  # most likely characters in a tooltip
EXCERPT = 30  # characters printed up to the most surprising one


def run(options: list[str]) -> None:
    """Run ``score`` with the given command-line options; raise UserError for any mistake."""
    parser = ArgumentParser(prog=f"{program()} score", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(score)
    score(**parse_options(parser, options))


def score(
    text: str,
    html: str | None = None,
    ckpt_path: str = "best",
    encoding: str = "utf-8",
    on_unknown: OnUnknown = "error",
) -> None:
    """Print the loss of a text under a trained model.

    Each character is predicted from all previous ones, or at least from the last half of the
    model's context. The loss of ``validate`` is slightly higher, since its windows do not overlap.

    Args:
        text: the path of a text file, or ``-`` for stdin.
        html: write a page to this path, with each character shaded by its surprisal.
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a model file; several,
            separated by commas, are an ensemble.
        encoding: text encoding of the file.
        on_unknown: ``error`` refuses a text with characters outside the model's vocabulary,
            ``skip`` drops them.
    """
    if html is not None:
        check_page_path(html)
    name, content = read_text(text, encoding, "the text", "--text")
    checkpoint = load_checkpoint(ckpt_path)
    tokenizer, vocabulary = checkpoint.tokenizer, checkpoint.tokenizer.vocabulary
    known, notes = tokenizer.drop_unknown(content, on_unknown), list[str]()
    if not known:
        raise UserError(
            "no character of the text is in the model's vocabulary; pass another text, or choose "
            "another model with --ckpt_path"
        )
    if n_unknown := len(content) - len(known):
        notes.append(f"{n_unknown:,} of {len(content):,} characters are unknown and were skipped")
    if html is not None and len(known) > MAX_SHOWN:
        notes.append(f"the page shows the first {MAX_SHOWN:,} of {len(known):,} characters")
    print_message("\n".join([*notes, f"scoring with {checkpoint.label}"]))
    model = kernels.install(checkpoint.model).to(best_device())
    start_id, k = int(start_ids(tokenizer, "")), 0 if html is None else TOOLTIP_CHARACTERS
    scored = surprisal(model, start_id, tokenizer.encode(known), k)
    if not bool(scored.nats.isfinite().all()):
        raise UserError(DIVERGED)
    loss = scored.nats.double().mean().item()
    summary = Summary(name, checkpoint.label, len(known), loss)
    print_text(report(summary, content, vocabulary, scored.nats))
    if html is not None:
        columns = (scored.nats / math.log(2), scored.likely, scored.probabilities)
        bits, likely, ps = (column[:MAX_SHOWN].tolist() for column in columns)
        page = render_page(summary, notes, known[:MAX_SHOWN], bits, likely, ps, vocabulary)
        write_atomically(Path(html), page.encode())
        print_message(str(Path(html)))


def report(summary: Summary, content: str, vocabulary: str, nats: Tensor) -> str:
    """Return the printed report: one number per line, then the most surprising character.

    Args:
        summary: of the whole text.
        content: the text, unknown characters included.
        vocabulary: the characters that were scored, N in the text.
        nats: their surprisal, (N,).
    """
    index = int(nats.argmax())
    position = [i for i, character in enumerate(content) if character in vocabulary][index]
    line = content.count("\n", 0, position) + 1
    start = max(position + 1 - EXCERPT, 0)
    excerpt = ("…" if start else "") + printable_line(content[start : position + 1])
    return "\n".join(
        [
            f"{'':20}{printable_line(summary.name)} under {printable_line(summary.checkpoint)}",
            *(f"{name:18}{value:>10} {unit}".rstrip() for name, value, unit in summary.rows()),
            f"{'most surprising':20}‘{printable(content[position])}’ "
            f"({nats[index].item() / math.log(2):.1f} bits) on line {line:,}: “{excerpt}”",
        ]
    )


def check_page_path(html: str) -> None:
    """Raise UserError if a page cannot be written there, or would replace another file."""
    path = Path(html)
    try:
        if path.is_dir():
            problem = "is a folder"
        elif not path.parent.is_dir():
            problem = "is in a folder that does not exist"
        elif os.path.lexists(path) and not is_own_page(path):
            problem = "already exists and was not written by this command"
        elif not os.access(path.parent, os.W_OK):
            problem = "is in a folder without write permission"
        else:
            return
    except OSError as error:  # such as a name that is too long
        problem = f"cannot be written ({error.strerror})"
    raise UserError(f"{html!r} {problem}: pass another path to --html")


def is_own_page(path: Path) -> bool:
    """Return whether a file is a page that this command wrote."""
    if not path.is_file():  # reading a FIFO or a device might never end
        return False
    try:
        with path.open("rb") as file:
            return GENERATOR.encode() in file.read(1000)
    except OSError:
        return False
