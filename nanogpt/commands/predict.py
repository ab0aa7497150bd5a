"""``predict``: sample text from a trained model. Text goes to stdout, all else to stderr."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from jsonargparse import ArgumentParser
from tqdm import tqdm

from nanogpt.errors import UserError
from nanogpt.generation.generate import (
    MAX_INT,
    GenerationOptions,
    TextModel,
    check_count,
    generate,
    generate_many,
    load,
)
from nanogpt.generation.quantization import Weights
from nanogpt.hardware import configure_allocator
from nanogpt.notices import escape_for, notice, print_message, program
from nanogpt.option_errors import parse_options
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown, Tokenizer


@dataclass(frozen=True, kw_only=True)
class PredictOptions(GenerationOptions):
    """The options of ``predict``: those of ``GenerationOptions`` and the following.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a model file; several,
            separated by commas, are an ensemble.
        weights: ``fp32``, ``bf16``, ``int8`` (CPU only; a sample may then depend on the others
            drawn with it), or ``auto``: bf16 where it is fast, else fp32.
        prompt: the beginning of the text; by default, sampling starts after a line break.
        prompt_file: a file with the prompt, or ``-`` for stdin.
        encoding: text encoding of the prompt file.
        on_unknown: ``error`` refuses a prompt with characters outside the model's vocabulary,
            ``skip`` drops them.
        interactive: read prompts from the terminal, one per line, and continue each.
        num_samples: number of samples to draw, in batches.
        output: a new file to write the text to, in addition to stdout.

    Raises:
        UserError: if a value is out of range, or options contradict each other.
    """

    ckpt_path: str = "best"
    weights: Weights = "auto"
    prompt: str = ""
    prompt_file: str | None = None
    encoding: str = "utf-8"
    on_unknown: OnUnknown = "error"
    interactive: bool = False
    num_samples: int = 1
    output: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_samples", self.num_samples)
        if self.prompt and self.prompt_file is not None:
            raise UserError("the prompt comes from --prompt or from --prompt_file: leave one out")
        files = (self.prompt_file, self.output)
        if self.interactive and (self.prompt or files != (None, None) or self.num_samples > 1):
            raise UserError(
                "--interactive reads prompts from the terminal and prints one sample for each: "
                "leave --prompt, --prompt_file, --output and --num_samples out"
            )


def run(options: list[str]) -> None:
    """Run ``predict`` with the given command-line options; raise UserError for any mistake."""
    parser = ArgumentParser(prog=f"{program()} predict", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(PredictOptions, skip={"interactive", "stop"})
    parser.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
    help_stop = "end before this string; repeatable"
    parser.add_argument("--stop", action="append", default=[], help=help_stop)
    predict(PredictOptions(**parse_options(parser, options)))


def predict(options: PredictOptions) -> None:
    """Sample text that continues a prompt, or each line of the terminal."""
    if options.greedy and (options.top_k is not None or options.top_p is not None):
        notice("top_k and top_p have no effect with temperature 0")
    if options.encoding != "utf-8" and options.prompt_file is None:
        notice("--encoding has no effect without --prompt_file")
    prompt = options.prompt
    if options.prompt_file is not None:
        prompt = read_text(options.prompt_file, options.encoding, "the prompt", "--prompt_file")[1]
    configure_allocator()
    model = load(options.ckpt_path, options.weights)
    prompt = drop_unknown(prompt, model.tokenizer, options.on_unknown)
    with nullcontext() if options.output is None else new_file(options.output) as file:
        print_message(f"sampling from {model.checkpoint}")
        if options.interactive:
            run_interactive(model, options)
        else:
            write_samples(model, prompt, options, [sys.stdout, file] if file else [sys.stdout])


def drop_unknown(prompt: str, tokenizer: Tokenizer, on_unknown: OnUnknown) -> str:
    """Return a prompt without the characters outside the vocabulary, with a notice."""
    kept = tokenizer.drop_unknown(prompt, on_unknown)
    if len(kept) < len(prompt):
        notice(f"dropped {len(prompt) - len(kept):,} unknown characters of the prompt")
    return kept


def new_file(path: str) -> TextIO:
    """Create a text file; raise UserError if it exists or cannot be created."""
    try:
        # like stdout: a corpus in UTF-7 may contain surrogates, which UTF-8 cannot encode
        return Path(path).open("x", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"--output {path!r} cannot be created: {error.strerror}; pass a new file name"
        ) from error


def write(text: str, outputs: Sequence[TextIO]) -> None:
    """Write text to all outputs and flush them; a terminal gets no control characters."""
    for output in outputs:
        output.write(escape_for(output, text))
        output.flush()


def write_samples(
    model: TextModel, prompt: str, options: PredictOptions, outputs: Sequence[TextIO]
) -> None:
    """Write one sample as it is drawn, or several, each as soon as its batch is drawn."""
    n = options.num_samples
    hidden = not sys.stderr.isatty() or (n == 1 and sys.stdout.isatty())
    with tqdm(total=n * options.max_new_tokens, unit="char", disable=hidden, leave=False) as bar:
        if n == 1:
            write(prompt, outputs)
            for piece in generate(model, prompt, options):
                write(piece, outputs)
                bar.update(len(piece))
            write("\n", outputs)
        else:
            samples = generate_many(model, n, prompt, options, on_step=bar.update)
            for number, sample in enumerate(samples, 1):
                print(f"sample {number} of {n}", file=sys.stderr, flush=True)
                write(f"{prompt}{sample}\n\n", outputs)


def run_interactive(model: TextModel, options: PredictOptions) -> None:
    """Continue each line of stdin until it ends; Ctrl-C ends the current sample only."""
    print("enter a prompt; Ctrl-C stops a sample, Ctrl-D exits", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        try:
            prompt = drop_unknown(line.removesuffix("\n"), model.tokenizer, options.on_unknown)
            for piece in generate(model, prompt, options):
                write(piece, [sys.stdout])
        except UserError as error:
            print_message(f"error: {error}")
        except KeyboardInterrupt:
            pass
        write("\n", [sys.stdout])
        options = replace(options, seed=(options.seed + 1) & MAX_INT)
