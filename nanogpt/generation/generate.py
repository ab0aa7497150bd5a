"""The Python API for sampling: ``load`` a trained model and ``generate`` text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, get_args

import torch
from torch import Tensor

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation.checkpoint import load_checkpoint
from nanogpt.generation.decoding import Context, decode, evaluation_mode
from nanogpt.generation.quantization import Weights, set_weights
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.generation.stop_strings import StopStringFilter
from nanogpt.hardware import best_device
from nanogpt.models import Model
from nanogpt.text.tokenizer import Tokenizer

CPU_BATCH_SIZE = 64  # more samples are not faster on a CPU, and take memory
GPU_BATCH_SIZE = 1024
MAX_INT = 2**63 - 1
DIVERGED = (
    "the model returned NaN: its training diverged; choose another checkpoint with --ckpt_path"
)


@dataclass(frozen=True)
class TextModel:
    """A model for sampling with its tokenizer.

    Unlike a ``Checkpoint``, its weights may be quantized, and the optimizer state is not kept.

    Args:
        model: on any device.
        tokenizer: tokenizer of the training text.
        checkpoint: the file it was loaded from, if any, or those of an ensemble.
    """

    model: Model
    tokenizer: Tokenizer
    checkpoint: str | None = None


class HasTextModel(Protocol):
    """An object that provides a ``TextModel``, such as the LightningModule ``LanguageModel``."""

    def text_model(self) -> TextModel:
        """Return its network and its tokenizer."""


def as_text_model(model: TextModel | HasTextModel) -> TextModel:
    """Return a ``TextModel``, or that of an object that provides one."""
    if isinstance(model, TextModel):
        return model
    if not hasattr(model, "text_model"):
        raise UserError(
            f"a {type(model).__name__} has no tokenizer: pass what nanogpt.load returns, "
            "TextModel(network, tokenizer) or a LanguageModel"
        )
    return model.text_model()


@dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingRule):
    """Settings of generated text: those of a ``SamplingRule`` and the following.

    Args:
        max_new_tokens: maximum number of characters to generate.
        stop: strings at which the text ends; they are not part of it.
        seed: random seed; with fp32 weights, the text of a sample does not depend on the
            number of samples, up to rounding.
        context: how to continue a text longer than the model's ``block_size``: ``refill`` restarts
            the window from its last half whenever it is full, which is fast; ``exact`` always reads
            the last ``block_size`` characters, as the reference does, which is slow.

    Raises:
        UserError: if a value is out of range.
    """

    max_new_tokens: int = 500
    stop: Sequence[str] = ()
    seed: int = 1337
    context: Context = "refill"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_new_tokens", self.max_new_tokens)
        if not 0 <= self.seed <= MAX_INT:
            raise UserError(f"seed must be an integer from 0 to 2^63 - 1, not {self.seed}")
        if self.context not in get_args(Context):
            raise UserError(f"context must be refill or exact, not {self.context!r}")
        StopStringFilter(self.stop)  # refuses an empty string


def check_count(name: str, value: int) -> None:
    """Raise UserError unless a number of samples or characters is in range."""
    if not 1 <= value <= MAX_INT:
        raise UserError(f"{name} must be at least 1 and at most 2^63 - 1, not {value}")


DEFAULTS = GenerationOptions()


def load(
    ckpt_path: str = "best", weights: Weights = "auto", device: str | None = None
) -> TextModel:
    """Load a trained model for sampling. No code from the file is run.

    Args:
        ckpt_path: ``best`` or ``last`` of the newest run, a run folder, or a model file; several,
            separated by commas, are an ensemble.
        weights: ``fp32``, ``bf16``, ``int8`` (CPU only), or ``auto``: bf16 where it is fast, else
            fp32.
        device: ``cpu`` or ``cuda``; by default a GPU if there is one.

    Raises:
        UserError: if there is no such checkpoint, or the device does not support the weights.
    """
    checkpoint = load_checkpoint(ckpt_path)
    model = set_weights(kernels.install(checkpoint.model), weights, device or best_device())
    return TextModel(model, checkpoint.tokenizer, checkpoint.label)


def generate(
    model: TextModel | HasTextModel,
    prompt: str = "",
    options: GenerationOptions = DEFAULTS,
    **settings: Any,
) -> Iterator[str]:
    """Yield the text that follows a prompt, each character as soon as it is drawn.

    The model is in evaluation mode until the text ends.

    Args:
        model: from ``load``, or a ``LanguageModel``.
        prompt: the text to continue; by default a line break.
        options: see ``GenerationOptions``.
        settings: single options, such as ``temperature=0.5``, which override ``options``.

    Raises:
        UserError: if an option is out of range, the model does not know a character of the prompt,
            or it returns NaN.
    """
    text_model, options = as_text_model(model), replace(options, **settings)
    stop = StopStringFilter(options.stop)
    for ids in _decode(text_model, prompt, options):
        if shown := stop.feed(text_model.tokenizer.decode(ids)):
            yield shown
        if stop.stopped:
            return
    if held := stop.flush():
        yield held


def generate_many(
    model: TextModel | HasTextModel,
    num_samples: int,
    prompt: str = "",
    options: GenerationOptions = DEFAULTS,
    on_step: Callable[[int], object] = lambda drawn: None,
    **settings: Any,
) -> Iterator[str]:
    """Yield samples of the text that follows a prompt, decoded in batches.

    The first sample is the text of ``generate``, which also describes the arguments. ``on_step`` is
    called after each step with the number of characters drawn in it.
    """
    text_model, options = as_text_model(model), replace(options, **settings)
    tokenizer = text_model.tokenizer
    on_cpu = next(text_model.model.parameters()).is_cpu
    batch_size = CPU_BATCH_SIZE if on_cpu else GPU_BATCH_SIZE
    for first in range(0, num_samples, batch_size):
        n = min(batch_size, num_samples - first)
        filters, steps = [StopStringFilter(options.stop) for _ in range(n)], list[Tensor]()
        interrupt: KeyboardInterrupt | None = None
        try:
            for ids in _decode(text_model, prompt, options, first, n):
                steps.append(ids)
                on_step(n)
                if options.stop:
                    for stop, character in zip(filters, tokenizer.decode(ids), strict=True):
                        stop.feed(character)
                    if all(stop.stopped for stop in filters):
                        break
        except KeyboardInterrupt as error:  # yield the finished part before raising it
            interrupt = error
        for row in torch.stack(steps, dim=1) if steps else torch.empty(n, 0, dtype=torch.long):
            stop = StopStringFilter(options.stop)
            yield stop.feed(tokenizer.decode(row)) + stop.flush()
        if interrupt:
            raise interrupt


def _decode(
    text_model: TextModel, prompt: str, options: GenerationOptions, first: int = 0, n: int = 1
) -> Iterator[Tensor]:
    """Yield the ids, (n,) per step, of the samples from number ``first``."""
    model, device = text_model.model, next(text_model.model.parameters()).device
    start = start_ids(text_model.tokenizer, prompt).to(device).expand(n, -1)
    u_stream = uniform_streams(options.seed, n, first, device)
    steps = decode(model, start, options.max_new_tokens, options, u_stream, options.context)
    vocab_size = len(text_model.tokenizer.vocabulary)
    with evaluation_mode(model):
        for i, ids in enumerate(steps):
            # NaN draws an id outside the vocabulary; on a GPU, looking at each step would slow it
            if (i == 0 or device.type == "cpu") and int(ids.max()) >= vocab_size:
                raise UserError(DIVERGED)
            yield ids


def sample_text(model: Model, tokenizer: Tokenizer, max_new_tokens: int, seed: int) -> str:
    """Return one sample. The global random state and the model's mode are not changed."""
    text_model = TextModel(model, tokenizer)
    return "".join(generate(text_model, max_new_tokens=max_new_tokens, seed=seed))


def start_ids(tokenizer: Tokenizer, prompt: str) -> Tensor:
    """Return the ids of a prompt, (1, T).

    An empty prompt is replaced by a line break, as in the reference, or by id 0 if the vocabulary
    has none.
    """
    start = prompt or ("\n" if "\n" in tokenizer.vocabulary else tokenizer.vocabulary[0])
    return tokenizer.encode(start).long()[None]
