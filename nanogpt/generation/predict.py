"""``python cli.py predict``: text from a trained model on stdout, all else on stderr."""

import sys
from argparse import ArgumentError
from collections.abc import Iterator

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.generation.decoding import decode, start_ids
from nanogpt.generation.loading import load_model
from nanogpt.generation.sampling import SamplingRule
from nanogpt.parsing import explain
from nanogpt.runs import find_checkpoint
from nanogpt.text.tokenizer import Tokenizer


def run(options: list[str]) -> None:
    """Parse the options of ``predict`` and run it.

    Raises:
        UserError: for an unknown option or a value out of its range.
    """
    parser = ArgumentParser(prog="cli.py predict", exit_on_error=False, allow_abbrev=False)
    parser.add_function_arguments(predict)
    try:
        settings = parser.parse_args(options)
    except ArgumentError as error:
        raise UserError(explain(str(error), parser.get_defaults().keys())) from error
    predict(**settings.as_dict())


def predict(
    prompt: str = "",
    max_new_tokens: int = 500,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 1337,
    ckpt_path: str = "best",
) -> None:
    """Sample text from the newest run, or from a checkpoint.

    Args:
        prompt: what the text begins with; by default it starts from a line break.
        max_new_tokens: characters to draw for each sample.
        num_samples: how many samples to draw, in one batch.
        temperature: 1 samples from the model as it is, lower is more cautious, 0 is greedy.
        top_k: draw only among the k most likely characters.
        seed: of the draws: the same seed gives the same text.
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
    """
    rule = SamplingRule(temperature, top_k)
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed must be a whole number from 0 to 2^63 - 1, not {seed}")
    checkpoint = find_checkpoint(ckpt_path)
    model, tokenizer = load_model(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    start = start_ids(tokenizer, prompt).to(device).expand(num_samples, -1)
    print(f"sampling from {checkpoint}", file=sys.stderr)
    generator = torch.Generator(device).manual_seed(seed)
    drawn = decode(model.to(device), start, max_new_tokens, rule, generator)
    if num_samples == 1:
        stream(prompt, drawn, tokenizer)
    else:
        for number, row in enumerate(torch.stack(list(drawn), dim=1), 1):
            print(f"sample {number} of {num_samples}", file=sys.stderr, flush=True)
            print(prompt + tokenizer.decode(row) + "\n", flush=True)


def stream(prompt: str, drawn: Iterator[Tensor], tokenizer: Tokenizer) -> None:
    """Write a sample to stdout, each character as soon as it is drawn."""
    sys.stdout.write(prompt)
    for ids in drawn:
        sys.stdout.write(tokenizer.decode(ids))
        sys.stdout.flush()
    sys.stdout.write("\n")
