"""``predict``: sample text from a trained model. Text goes to stdout, all else to stderr."""

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TextIO, TypeVar

from jsonargparse import ArgumentParser, Namespace

from nanogpt.errors import UserError
from nanogpt.generation.generate import GenerationOptions, TextModel, generate, generate_many, load
from nanogpt.generation.quantization import Weights
from nanogpt.hardware import keep_memory
from nanogpt.notices import notice, program
from nanogpt.option_errors import explain
from nanogpt.text.files import read_text
from nanogpt.text.tokenizer import OnUnknown, Tokenizer

Options = TypeVar("Options")


@dataclass(frozen=True)
class ModelOptions:
    """The trained model.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a checkpoint file.
        weights: ``fp32``, ``bf16``, ``int8`` (CPU only; a sample may then depend on the others
            drawn with it), or ``auto``: bf16 where it is fast, else fp32.
    """

    ckpt_path: str = "best"
    weights: Weights = "auto"


@dataclass(frozen=True)
class PromptOptions:
    """The prompt.

    Args:
        prompt: the beginning of the text; by default, sampling starts after a line break.
        prompt_file: a file with the prompt, or ``-`` for stdin.
        encoding: of the prompt file.
        on_unknown: ``error`` refuses a prompt with characters outside the model's vocabulary,
            ``skip`` drops them.
        interactive: read prompts from the terminal, one per line, and continue each.
    """

    prompt: str = ""
    prompt_file: str | None = None
    encoding: str = "utf-8"
    on_unknown: OnUnknown = "error"
    interactive: bool = False


@dataclass(frozen=True)
class OutputOptions:
    """The output.

    Args:
        num_samples: number of samples to draw, in batches.
        output: a new file to write the text to, in addition to stdout.
    """

    num_samples: int = 1
    output: str | None = None


def run(options: list[str]) -> None:
    """Run ``predict`` with the given command-line options.

    Raises:
        UserError: for any mistake in the options, the prompt or the checkpoint.
    """
    parser = ArgumentParser(prog=f"{program()} predict", exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(ModelOptions)
    parser.add_class_arguments(PromptOptions, skip={"interactive"})
    parser.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
    parser.add_class_arguments(GenerationOptions, skip={"stop"})
    parser.add_argument("--stop", action="append", help="end before this string; repeatable")
    parser.add_class_arguments(OutputOptions)
    try:
        given = parser.parse_args(options)
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults().keys())) from error
    given.stop = given.stop or ()
    model, prompt = build(ModelOptions, given), build(PromptOptions, given)
    predict(model, prompt, build(GenerationOptions, given), build(OutputOptions, given))


def build(kind: type[Options], given: Namespace) -> Options:
    """Build a dataclass from the options with the names of its fields."""
    return kind(**{field.name: given[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def predict(
    source: ModelOptions, given: PromptOptions, options: GenerationOptions, out: OutputOptions
) -> None:
    """Sample text that continues a prompt, or each line of the terminal.

    Raises:
        UserError: if the options contradict each other, or the prompt or model cannot be read.
    """
    check(given, out)
    announce_unused(given, options)
    prompt = given.prompt
    if given.prompt_file is not None:
        prompt = read_text(given.prompt_file, given.encoding, "the prompt", "--prompt_file")[1]
    keep_memory()
    model = load(source.ckpt_path, source.weights)
    prompt = drop_unknown(prompt, model.tokenizer, given.on_unknown)
    with nullcontext() if out.output is None else new_file(out.output) as file:
        outputs = [sys.stdout] if file is None else [sys.stdout, file]
        print(f"sampling from {model.checkpoint}", file=sys.stderr)
        if given.interactive:
            converse(model, given.on_unknown, options)
        elif out.num_samples == 1:
            write_sample(model, prompt, options, outputs)
        else:
            write_samples(model, prompt, options, out.num_samples, outputs)


def check(given: PromptOptions, out: OutputOptions) -> None:
    """Check the number of samples, and that the prompt has one source.

    Raises:
        UserError: if they are not valid.
    """
    if out.num_samples < 1:
        raise UserError(f"num_samples must be at least 1, not {out.num_samples}")
    if given.prompt and given.prompt_file is not None:
        raise UserError("the prompt comes from --prompt or from --prompt_file: leave one out")
    has_prompt = given.prompt or given.prompt_file is not None
    if given.interactive and (has_prompt or out.output is not None or out.num_samples > 1):
        raise UserError(
            "--interactive reads prompts from the terminal and prints one sample for each: leave "
            "--prompt, --prompt_file, --output and --num_samples out"
        )


def announce_unused(given: PromptOptions, options: GenerationOptions) -> None:
    """Print a notice for each option that has no effect."""
    if options.greedy and (options.top_k is not None or options.top_p is not None):
        notice("top_k and top_p have no effect with temperature 0")
    if given.encoding != "utf-8" and given.prompt_file is None:
        notice("--encoding has no effect without --prompt_file")


def drop_unknown(prompt: str, tokenizer: Tokenizer, on_unknown: OnUnknown) -> str:
    """Return a prompt without the characters outside the vocabulary, with a notice.

    Raises:
        UserError: if there are any and ``on_unknown`` is ``error``.
    """
    kept = tokenizer.drop_unknown(prompt, on_unknown)
    if len(kept) < len(prompt):
        notice(f"dropped {len(prompt) - len(kept):,} unknown characters of the prompt")
    return kept


def new_file(path: str) -> TextIO:
    """Create a text file.

    Raises:
        UserError: if it exists or cannot be created.
    """
    try:
        return Path(path).open("x", encoding="utf-8")
    except FileExistsError as error:
        raise UserError(f"{path!r} already exists: pass a new file name to --output") from error
    except OSError as error:
        raise UserError(f"--output {path!r} cannot be created: {error.strerror}") from error


def write(text: str, outputs: Sequence[TextIO]) -> None:
    """Write text to all outputs and flush them."""
    for output in outputs:
        output.write(text)
        output.flush()


def progress_bar(total: int, shown: bool = True) -> Any:
    """Return a progress bar on stderr that counts characters, if stderr is a terminal."""
    from tqdm import tqdm

    disabled = not (shown and sys.stderr.isatty())
    return tqdm(total=total, unit="char", disable=disabled, leave=False)


def write_sample(
    model: TextModel, prompt: str, options: GenerationOptions, outputs: Sequence[TextIO]
) -> None:
    """Write a sample, each character as soon as it is drawn."""
    with progress_bar(options.max_new_tokens, shown=not sys.stdout.isatty()) as bar:
        write(prompt, outputs)
        for piece in generate(model, prompt, options):
            write(piece, outputs)
            bar.update(len(piece))
        write("\n", outputs)


def write_samples(
    model: TextModel,
    prompt: str,
    options: GenerationOptions,
    num_samples: int,
    outputs: Sequence[TextIO],
) -> None:
    """Write samples, each as soon as its batch is drawn."""
    with progress_bar(num_samples * options.max_new_tokens) as bar:
        samples = generate_many(model, num_samples, prompt, options, on_step=bar.update)
        for number, sample in enumerate(samples, 1):
            print(f"sample {number} of {num_samples}", file=sys.stderr, flush=True)
            write(f"{prompt}{sample}\n\n", outputs)


def converse(model: TextModel, on_unknown: OnUnknown, options: GenerationOptions) -> None:
    """Continue each line of stdin until it ends; Ctrl-C ends the current sample only."""
    print("enter a prompt; Ctrl-C stops a sample, Ctrl-D exits", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        if not (line := sys.stdin.readline()):
            return
        try:
            prompt = drop_unknown(line.removesuffix("\n"), model.tokenizer, on_unknown)
            for piece in generate(model, prompt, options):
                write(piece, [sys.stdout])
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            pass
        write("\n", [sys.stdout])
        options = replace(options, seed=options.seed + 1)
