"""Text from a trained model, as a library: ``load`` it, and ``generate``."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nanogpt.generation.decoding import Context, decode
from nanogpt import kernels
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.generation.stop_strings import StopStringFilter
from nanogpt.generation.quantization import Weights, set_weights
from nanogpt.hardware import best_device
from nanogpt.models import Model
from nanogpt.text.tokenizer import Tokenizer

STREAMS_ON_A_CPU = 64  # samples that share a pass: more gain no speed there, and take memory
STREAMS = 1024


@dataclass(frozen=True)
class TextModel:
    """A trained model in evaluation mode, and the tokenizer that it was trained with."""

    model: Model
    tokenizer: Tokenizer
    checkpoint: Path | None = None  # where it comes from


def load(
    ckpt_path: str = "best", weights: Weights = "auto", device: str | None = None
) -> TextModel:
    """Load a trained model for sampling; nothing in the file can run.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run's folder, or a checkpoint.
        weights: ``fp32``, ``bf16``, ``int8`` (on a CPU), or ``auto``: bf16 where the machine has
            units for it, else fp32.
        device: ``cpu`` or ``cuda``; None takes a GPU if there is one.

    Raises:
        UserError: if there is no such checkpoint, or its weights cannot be had in that form.
    """
    checkpoint = load_checkpoint(ckpt_path)
    model = set_weights(kernels.install(checkpoint.model), weights, device or best_device())
    return TextModel(model, checkpoint.tokenizer, checkpoint.path)


def generate(
    text_model: TextModel,
    prompt: str = "",
    max_new_tokens: int = 500,
    rule: SamplingRule | None = None,
    stop: Sequence[str] = (),
    seed: int = 1337,
    context: Context = "refill",
) -> Iterator[str]:
    """Yield the text that follows a prompt, each character as soon as it is drawn.

    Args:
        text_model: from ``load``.
        prompt: what to go on from; by default a line break.
        max_new_tokens: most characters to draw.
        rule: how a character is drawn; by default from the model as it is.
        stop: strings before the first of which the text ends.
        seed: of the draws: the same seed gives the same text, in fp32 up to rounding, whatever
            the number of samples.
        context: what the model sees past its ``block_size``: ``refill`` or ``exact``.

    Raises:
        UserError: if the prompt has a character that the model does not know.
    """
    model, tokenizer = text_model.model, text_model.tokenizer
    start, stops = start_ids(tokenizer, prompt).to(_device(model)), StopStringFilter(stop)
    rule, numbers = rule or SamplingRule(), uniform_streams(seed, 1, device=start.device)
    for drawn in decode(model, start, max_new_tokens, rule, numbers, context):
        if shown := stops.feed(tokenizer.decode(drawn)):
            yield shown
        if stops.met:
            return
    if held := stops.rest():
        yield held


def generate_many(
    text_model: TextModel,
    num_samples: int,
    prompt: str = "",
    max_new_tokens: int = 500,
    rule: SamplingRule | None = None,
    stop: Sequence[str] = (),
    seed: int = 1337,
    context: Context = "refill",
    on_step: Callable[[int], object] = lambda drawn: None,
) -> Iterator[str]:
    """Yield samples of the text that follows a prompt, in groups that share a pass.

    The arguments are those of ``generate``, whose text is the first sample; ``on_step`` is told
    of each step how many characters it drew.
    """
    model, tokenizer, rule = text_model.model, text_model.tokenizer, rule or SamplingRule()
    start = start_ids(tokenizer, prompt).to(_device(model))
    at_a_time = STREAMS_ON_A_CPU if start.device.type == "cpu" else STREAMS
    for first in range(0, num_samples, at_a_time):
        n = min(at_a_time, num_samples - first)
        numbers = uniform_streams(seed, n, first, start.device)
        watched, steps = [StopStringFilter(stop) for _ in range(n)], list[Tensor]()
        stopped: KeyboardInterrupt | None = None
        try:
            for drawn in decode(model, start.expand(n, -1), max_new_tokens, rule, numbers, context):
                steps.append(drawn)
                on_step(n)
                if stop and grow(watched, tokenizer.decode(drawn)):
                    break
        except KeyboardInterrupt as error:  # what has been drawn is not lost
            stopped = error
        for row in torch.stack(steps, dim=1) if steps else start.new_empty(n, 0):
            stops = StopStringFilter(stop)
            yield stops.feed(tokenizer.decode(row)) + stops.rest()
        if stopped:
            raise stopped


def grow(watched: Sequence[StopStringFilter], characters: str) -> bool:
    """Feed each of the watched texts a character; return whether all have met a stop string."""
    for stops, character in zip(watched, characters, strict=True):
        stops.feed(character)
    return all(stops.met for stops in watched)


def sample_text(model: Model, tokenizer: Tokenizer, max_new_tokens: int, seed: int) -> str:
    """Return one sample; global random state and the model's mode are left as they were."""
    training = model.training
    model.eval()
    try:
        return "".join(generate(TextModel(model, tokenizer), "", max_new_tokens, seed=seed))
    finally:
        model.train(training)


def start_ids(tokenizer: Tokenizer, prompt: str) -> Tensor:
    """Return the ids that decoding starts from, shape (1, T).

    An empty prompt starts, as the reference does, from a line break, or from id 0 in a
    vocabulary without one.
    """
    start = prompt or ("\n" if "\n" in tokenizer.vocabulary else tokenizer.vocabulary[0])
    return tokenizer.encode(start).long()[None]


def _device(model: Model) -> torch.device:
    return next(model.parameters()).device
