"""``python cli.py predict``: text from a trained model on stdout, all else on stderr."""

import sys
from argparse import ArgumentError
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TextIO

from jsonargparse import ArgumentParser

from nanogpt.errors import UserError
from nanogpt.generation.decoding import Context
from nanogpt.generation.generate import TextModel, generate, generate_many, load
from nanogpt.generation.sampling import SamplingRule
from nanogpt.generation.stop_strings import StopStringFilter
from nanogpt.generation.quantization import Weights
from nanogpt.hardware import keep_memory
from nanogpt.notices import notice
from nanogpt.option_errors import explain
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown, Tokenizer


def run(options: list[str]) -> None:
    """Parse the options of ``predict`` and run it.

    Raises:
        UserError: for an unknown option or a value out of its range.
    """
    parser = ArgumentParser(prog="cli.py predict", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(predict, skip={"stop", "interactive"})
    parser.add_argument("--stop", action="append", help="end before this text; repeatable")
    parser.add_argument("--interactive", action="store_true", help="prompts from the terminal")
    try:
        settings = parser.parse_args(options)
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults().keys())) from error
    predict(**settings.as_dict())


def predict(
    prompt: str = "",
    prompt_file: str | None = None,
    max_new_tokens: int = 500,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: list[str] | None = None,
    seed: int = 1337,
    ckpt_path: str = "best",
    context: Context = "refill",
    weights: Weights = "auto",
    on_unknown: OnUnknown = "error",
    encoding: str = "utf-8",
    output: str | None = None,
    interactive: bool = False,
) -> None:
    """Sample text from the newest run, or from a checkpoint.

    Args:
        prompt: what the text begins with; by default it starts from a line break.
        prompt_file: a file with the prompt in it, or ``-`` for stdin.
        max_new_tokens: most characters to draw for each sample.
        num_samples: how many samples to draw; they share each pass through the model.
        temperature: 1 samples from the model as it is, lower is more cautious, 0 is greedy.
        top_k: draw only among the k most likely characters.
        top_p: draw only among the fewest characters that together have this probability.
        stop: texts before the first of which a sample ends.
        seed: of the draws: the same seed gives the same text, for each sample of its own.
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
        context: of a text longer than the model's ``block_size``: ``refill`` starts its window
            again from the last half whenever it is full, and is fast; ``exact`` always shows the
            last ``block_size`` characters, as the reference does, and computes all of them
            again for each one.
        weights: ``fp32``, ``bf16``, ``int8`` (CPU only; a sample may then depend on what is drawn
            beside it), or ``auto``: bf16 where it is fast, else fp32.
        on_unknown: a character of the prompt that the model does not know is an ``error``, or
            left out: ``skip``.
        encoding: of the prompt file.
        output: a new file to write the text to as well.
        interactive: read prompts from the terminal, one a line, and go on from each.
    """
    rule, stops = SamplingRule(temperature, top_k, top_p), StopStringFilter(stop or ()).stops
    check(max_new_tokens, num_samples, seed)
    given_too = prompt or prompt_file is not None or output is not None or num_samples > 1
    if interactive and given_too:
        raise UserError("interactive takes its prompts from the terminal, one sample at a time")
    if prompt and prompt_file is not None:
        raise UserError("give the prompt by one of --prompt and --prompt_file, not by both")
    announce_unused(rule, encoding if prompt_file is None else "utf-8")
    if prompt_file is not None:
        prompt = read_text(prompt_file, encoding, "the prompt", "--prompt_file")[1]
    keep_memory()
    model = load(ckpt_path, weights)
    prompt = known(prompt, model.tokenizer, on_unknown)
    given: dict[str, Any] = {"rule": rule, "stop": stops, "context": context}
    given |= {"max_new_tokens": max_new_tokens}
    if interactive:
        print(f"sampling from {model.checkpoint}", file=sys.stderr)
        return converse(model, on_unknown, seed, given)
    given |= {"prompt": prompt, "seed": seed}
    with ExitStack() as files:
        outputs = [sys.stdout]
        if output is not None:
            outputs.append(files.enter_context(new_file(output)))
        # from here on nothing is refused
        print(f"sampling from {model.checkpoint}", file=sys.stderr)
        if num_samples == 1:
            stream(model, outputs, given)
        else:
            draw_many(model, num_samples, outputs, given)
    return None


def check(max_new_tokens: int, num_samples: int, seed: int) -> None:
    """Check the numbers that no other part checks.

    Raises:
        UserError: if one is out of its range.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}")


def announce_unused(rule: SamplingRule, encoding: str) -> None:
    """Say which settings are without effect: one that is ignored in silence misleads."""
    if rule.greedy and (rule.top_k is not None or rule.top_p is not None):
        notice("with temperature 0 top_k and top_p change nothing")
    if encoding != "utf-8":
        notice("encoding is that of a --prompt_file, and none was given")


def known(prompt: str, tokenizer: Tokenizer, on_unknown: OnUnknown) -> str:
    """Return a prompt without the characters that the model does not know, or refuse it.

    Raises:
        UserError: if there are such characters, and they are an error.
    """
    kept = tokenizer.known(prompt, on_unknown)
    if len(kept) < len(prompt):
        notice(f"{len(prompt) - len(kept):,} unknown characters of the prompt are left out")
    return kept


def new_file(path: str) -> TextIO:
    """Open a file for text that must not be there yet.

    Raises:
        UserError: if it is, or cannot be made.
    """
    try:
        return Path(path).open("x", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{path!r} is there already: give --output a new name") from error
    except OSError as error:
        raise UserError(f"--output {path!r} cannot be made: {error.strerror}") from error


def write(text: str, outputs: list[TextIO]) -> None:
    """Write a piece of text to all outputs, so that it is there at once."""
    for output in outputs:
        output.write(text)
        output.flush()


def progress(total: int) -> Any:
    """Return a bar of characters drawn, on a terminal's stderr."""
    from tqdm import tqdm

    return tqdm(total=total, unit="char", disable=not sys.stderr.isatty(), leave=False)


def stream(model: TextModel, outputs: list[TextIO], given: dict[str, Any]) -> None:
    """Write a sample, each character as soon as it is drawn."""
    shown = progress(given["max_new_tokens"]) if not sys.stdout.isatty() else None
    with closing(shown) if shown is not None else ExitStack():
        write(given["prompt"], outputs)
        for piece in generate(model, **given):
            write(piece, outputs)
            if shown is not None:
                shown.update(len(piece))
        write("\n", outputs)


def draw_many(
    model: TextModel, num_samples: int, outputs: list[TextIO], given: dict[str, Any]
) -> None:
    """Write samples, each as soon as its group is drawn."""
    with closing(progress(num_samples * given["max_new_tokens"])) as shown:
        samples = generate_many(model, num_samples, on_step=shown.update, **given)
        for number, sample in enumerate(samples, 1):
            print(f"sample {number} of {num_samples}", file=sys.stderr, flush=True)
            write(f"{given['prompt']}{sample}\n\n", outputs)


def converse(model: TextModel, on_unknown: OnUnknown, seed: int, given: dict[str, Any]) -> None:
    """Read prompts, one a line, and go on from each, until the input ends; Ctrl-C ends a text."""
    print("a prompt, and Enter; Ctrl-C stops a text, Ctrl-D ends", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        prompt = line.removesuffix("\n")
        try:
            kept = known(prompt, model.tokenizer, on_unknown)
            for piece in generate(model, kept, seed=seed, **given):
                write(piece, [sys.stdout])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            pass
        write("\n", [sys.stdout])
        seed += 1
