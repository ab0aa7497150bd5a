"""``score``: the loss of a text under a trained model, and an HTML page of its surprisal."""

import io
import math
import os
import sys
from argparse import ArgumentError
from pathlib import Path

from jsonargparse import ArgumentParser
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.atomic import write_atomically
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.generation.generate import start_ids
from nanogpt.hardware import best_device
from nanogpt.insight.html_report import GENERATOR, Summary, render_page
from nanogpt.insight.printable import printable, printable_line
from nanogpt.insight.surprisal import Surprisal, surprisal
from nanogpt.notices import program
from nanogpt.option_errors import explain
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown, Tokenizer

MAX_SHOWN = 200_000  # characters on a page: more slow a browser down
TOOLTIP_CHARACTERS = 5  # most likely characters in a tooltip
EXCERPT = 30  # characters printed up to the most surprising one


def run(options: list[str]) -> None:
    """Run ``score`` with the given command-line options.

    Raises:
        UserError: for any mistake in the options, the text or the checkpoint.
    """
    parser = ArgumentParser(prog=f"{program()} score", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(score)
    try:
        settings = parser.parse_args(options)
    except ArgumentError as error:
        if "arguments are required" in str(error):
            raise UserError("score needs a text: --text FILE, or --text - for stdin") from error
        raise UserError(explain(str(error), parser.get_defaults().keys())) from error
    score(**settings.as_dict())


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
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        encoding: of the text.
        on_unknown: ``error`` refuses a text with characters outside the model's vocabulary,
            ``skip`` drops them.
    """
    target = None if html is None else check_page_path(html)
    name, content = read_text(text, encoding, "the text", "--text")
    checkpoint = load_checkpoint(ckpt_path)
    model, tokenizer = kernels.install(checkpoint.model), checkpoint.tokenizer
    positions = known_positions(content, tokenizer, on_unknown)
    ids = tokenizer.encode("".join(content[position] for position in positions))
    notes = omissions(content, positions, target is not None)
    print(*notes, f"scoring with {checkpoint.path}", sep="\n", file=sys.stderr, flush=True)
    scored = finite_surprisal(model, tokenizer, ids, TOOLTIP_CHARACTERS if target else 0)
    summary = Summary(name, str(checkpoint.path), len(ids), scored.nats.double().mean().item())
    print(report(summary, content, positions, scored.nats), flush=True)
    if target:
        shown = tokenizer.decode(ids[:MAX_SHOWN])
        page = render_page(summary, notes, shown, *page_data(scored), tokenizer.vocabulary)
        write_atomically(target, page.encode())
        print(target, file=sys.stderr)


def finite_surprisal(model: nn.Module, tokenizer: Tokenizer, ids: Tensor, k: int) -> Surprisal:
    """Score ids, (N,), on a GPU if there is one.

    Raises:
        UserError: if the model returns NaN or infinity.
    """
    scored = surprisal(model.to(best_device()), int(start_ids(tokenizer, "")[0, 0]), ids, k)
    if not bool(scored.nats.isfinite().all()):
        raise UserError(
            "the model returned NaN: its training diverged; choose another checkpoint with "
            "--ckpt_path"
        )
    return scored


def page_data(scored: Surprisal) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Return the bits of each character on the page, the likely ids and their probabilities."""
    bits, likely = scored.nats[:MAX_SHOWN] / math.log(2), scored.likely[:MAX_SHOWN]
    return bits.tolist(), likely.tolist(), scored.probabilities[:MAX_SHOWN].tolist()


def known_positions(content: str, tokenizer: Tokenizer, on_unknown: OnUnknown) -> list[int]:
    """Return the positions of the characters in the vocabulary.

    Raises:
        UserError: if there are none, or others and ``on_unknown`` is ``error``.
    """
    tokenizer.drop_unknown(content, on_unknown)
    vocabulary = set(tokenizer.vocabulary)
    positions = [position for position, char in enumerate(content) if char in vocabulary]
    if not positions:
        raise UserError(
            "no character of the text is in the model's vocabulary; pass another text, or choose "
            "another model with --ckpt_path"
        )
    return positions


def report(summary: Summary, content: str, positions: list[int], nats: Tensor) -> str:
    """Return the printed report: one number per line, then the most surprising character.

    Args:
        summary: of the whole text.
        content: the text, unknown characters included.
        positions: of the N characters that were scored.
        nats: their surprisal, (N,).
    """
    index = int(nats.argmax())
    position, bits = positions[index], nats[index].item() / math.log(2)
    line = content.count("\n", 0, position) + 1
    start = max(position + 1 - EXCERPT, 0)
    excerpt = ("…" if start else "") + printable_line(content[start : position + 1])
    return "\n".join(
        [
            f"{'':20}{printable_line(summary.name)} under {printable_line(summary.checkpoint)}",
            *(f"{name:18}{value:>10} {unit}".rstrip() for name, value, unit in summary.rows()),
            f"{'most surprising':20}‘{printable(content[position])}’ ({bits:.1f} bits) "
            f"on line {line:,}: “{excerpt}”",
        ]
    )


def omissions(content: str, positions: list[int], has_page: bool) -> list[str]:
    """Return a note on the characters that are not scored, and one on those not shown, if any."""
    notes, n_unknown = [], len(content) - len(positions)
    if n_unknown:
        notes.append(f"{n_unknown:,} of {len(content):,} characters are unknown and were skipped")
    if has_page and len(positions) > MAX_SHOWN:
        notes.append(f"the page shows the first {MAX_SHOWN:,} of {len(positions):,} characters")
    return notes


def check_page_path(html: str) -> Path:
    """Return the path of the page to write.

    Raises:
        UserError: if its folder does not exist or is not writable, or if the path is that of a
            file that this command did not write.
    """
    path = Path(html)
    problem = ""
    if path.is_dir():
        problem = "is a folder"
    elif not path.parent.is_dir():
        problem = "is in a folder that does not exist"
    elif path.exists() and not is_own_page(path):
        problem = "already exists and was not written by this command"
    elif not os.access(path.parent, os.W_OK):
        problem = "is in a folder without write permission"
    if problem:
        raise UserError(f"{html!r} {problem}: pass another path to --html")
    return path


def is_own_page(path: Path) -> bool:
    """Return whether a file is a page that this command wrote."""
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            return GENERATOR.encode() in file.read(1000)
    except OSError:
        return False
