"""``python cli.py score``: the loss of any text under a trained model, and a page to look at."""

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
from nanogpt.generation.generate import start_ids
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.hardware import best_device
from nanogpt.insight.printable import one_line, visible
from nanogpt.insight.html_report import MARK, Summary, page
from nanogpt.insight.surprisal import Surprisal, surprisal
from nanogpt.option_errors import explain
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown, Tokenizer

SHOWN = 200_000  # characters on a page: more make a browser slow
LIKELY = 5  # characters in a tooltip
CONTEXT = 30  # characters shown before the most surprising one


def run(options: list[str]) -> None:
    """Parse the options of ``score`` and run it.

    Raises:
        UserError: for an unknown option, a value out of its range or a missing text.
    """
    parser = ArgumentParser(prog="cli.py score", exit_on_error=False, allow_abbrev=False)
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
    """Print the loss of a text under the newest run's model, or a checkpoint's.

    Every character counts, and each is predicted from all those before it or from at least half
    a context of them; the windows of ``validate`` begin anew, so its loss is a little higher.

    Args:
        text: the path of a text file, or ``-`` for stdin.
        html: where to write a page with every character shaded by its surprisal.
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
        encoding: of the text.
        on_unknown: ``error`` refuses a character that is not in the model's vocabulary, ``skip``
            leaves it out.
    """
    target = None if html is None else page_target(html)
    name, content = read_text(text, encoding, "the text", "--text")
    checkpoint = load_checkpoint(ckpt_path)
    model, tokenizer = kernels.install(checkpoint.model), checkpoint.tokenizer
    places = known_places(content, tokenizer, on_unknown)
    ids = tokenizer.encode("".join(content[place] for place in places))
    notes = left_out(content, places, target is not None)
    print(*notes, f"scoring with {checkpoint.path}", sep="\n", file=sys.stderr, flush=True)
    scored = finite_surprisal(model, tokenizer, ids, LIKELY if target else 0)
    summary = Summary(name, str(checkpoint.path), len(ids), scored.nats.double().mean().item())
    print(report(summary, content, places, scored.nats), flush=True)
    if target:
        shown = tokenizer.decode(ids[:SHOWN])
        content = page(summary, notes, shown, *lists(scored), tokenizer.vocabulary)
        write_atomically(target, content.encode())
        print(target, file=sys.stderr)


def finite_surprisal(model: nn.Module, tokenizer: Tokenizer, ids: Tensor, k: int) -> Surprisal:
    """Score ids (N,) from where decoding starts, on a GPU if there is one.

    Raises:
        UserError: if the model's weights give no numbers.
    """
    scored = surprisal(model.to(best_device()), int(start_ids(tokenizer, "")[0, 0]), ids, k)
    if not bool(scored.nats.isfinite().all()):
        raise UserError(
            "the model gives probabilities that are no numbers, so its training went astray; "
            "give another checkpoint with --ckpt_path"
        )
    return scored


def lists(scored: Surprisal) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Return what a page shows: bits, the ids of likely characters and their probabilities."""
    bits = scored.nats[:SHOWN] / math.log(2)
    return bits.tolist(), scored.likely[:SHOWN].tolist(), scored.chances[:SHOWN].tolist()


def known_places(content: str, tokenizer: Tokenizer, on_unknown: OnUnknown) -> list[int]:
    """Return the places of the characters to score: all, or all in the model's vocabulary.

    Raises:
        UserError: at an unknown character, if that is an error, or if there is no other.
    """
    tokenizer.known(content, on_unknown)
    vocabulary = set(tokenizer.vocabulary)
    places = [place for place, character in enumerate(content) if character in vocabulary]
    if not places:
        raise UserError(
            "no character of the text is in the model's vocabulary; give another text, or "
            "another model with --ckpt_path"
        )
    return places


def report(summary: Summary, content: str, places: list[int], nats: Tensor) -> str:
    """Return what is printed: a line for each number, and where the model was surprised most.

    The line and what stands before it are those of the text as it was given, N places of which
    were scored with ``nats`` (N,).
    """
    index = int(nats.argmax())
    place, bits = places[index], nats[index].item() / math.log(2)
    line = content.count("\n", 0, place) + 1
    begin = max(place + 1 - CONTEXT, 0)
    before = ("…" if begin else "") + one_line(content[begin : place + 1])
    return "\n".join(
        [
            f"{'':20}{one_line(summary.name)} under {one_line(summary.checkpoint)}",
            *(f"{name:18}{value:>10} {unit}".rstrip() for name, value, unit in summary.rows()),
            f"{'most surprising':20}‘{visible(content[place])}’ ({bits:.1f} bits) "
            f"on line {line:,}: “{before}”",
        ]
    )


def left_out(content: str, places: list[int], on_a_page: bool) -> list[str]:
    """Say how many characters are not scored, and how many not shown, if there are any."""
    notes, unknown = [], len(content) - len(places)
    if unknown:
        notes.append(f"{unknown:,} of {len(content):,} characters are unknown and were skipped")
    if on_a_page and len(places) > SHOWN:
        notes.append(f"the page shows the first {SHOWN:,} of {len(places):,} characters")
    return notes


def page_target(html: str) -> Path:
    """Return the path of the page to write, if it may be written.

    Raises:
        UserError: if there is no such folder, or something lies there that is no page of ours.
    """
    path = Path(html)
    refusal = ""
    if path.is_dir():
        refusal = "is a folder"
    elif not path.parent.is_dir():
        refusal = "lies in a folder that does not exist"
    elif path.exists() and not is_ours(path):
        refusal = "is there already, and no page of this command"
    elif not os.access(path.parent, os.W_OK):
        refusal = "lies in a folder that you may not write to"
    if refusal:
        raise UserError(f"{html!r} {refusal}: give another path with --html")
    return path


def is_ours(path: Path) -> bool:
    """Whether a path is that of an earlier page, which may be overwritten."""
    try:
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            return MARK.encode() in file.read(1000)
    except OSError:
        return False
