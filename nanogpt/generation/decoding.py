"""Decoding: from a prompt, one character after the other."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from nanogpt.generation.sampling import SamplingRule, draw, next_probabilities
from nanogpt.text.tokenizer import Tokenizer


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompt: Tensor,
    max_new_tokens: int,
    rule: SamplingRule,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield ``max_new_tokens`` times the next id of each row of a prompt.

    The plain loop, and so the specification: for each character the last ``block_size`` ids go
    through the whole model again.

    Args:
        model: maps ids (B, T) to logits (B, T, V); in evaluation mode.
        prompt: ids (B, T), T at least 1, on the model's device.
        max_new_tokens: how many ids to draw for each row.
        rule: how an id is drawn.
        generator: the source of chance, on the model's device; None takes the default one.

    Yields: ids of shape (B,).
    """
    ids = prompt.long()
    for _ in range(max_new_tokens):
        context = ids[:, -model.block_size :]  # type: ignore[operator]
        logits = model(context)[:, -1].float()  # (B, V)
        drawn = draw(next_probabilities(logits, rule), generator)  # (B)
        ids = torch.cat([context, drawn[:, None]], dim=1)  # (B, T + 1)
        yield drawn


def start_ids(tokenizer: Tokenizer, prompt: str) -> Tensor:
    """Return the ids that decoding starts from, shape (1, T).

    An empty prompt starts, as the reference does, from a line break, or from id 0 in a
    vocabulary without one.
    """
    start = prompt or ("\n" if "\n" in tokenizer.vocabulary else tokenizer.vocabulary[0])
    return tokenizer.encode(start).long()[None]


def sample_text(model: nn.Module, tokenizer: Tokenizer, max_new_tokens: int, seed: int) -> str:
    """Return one sample of ``max_new_tokens`` characters, from the empty prompt."""
    return sample_texts(model, tokenizer, 1, max_new_tokens, seed)[0]


def sample_texts(
    model: nn.Module,
    tokenizer: Tokenizer,
    num_samples: int,
    max_new_tokens: int,
    seed: int,
    prompt: str = "",
    rule: SamplingRule | None = None,
) -> list[str]:
    """Return samples of ``max_new_tokens`` characters, drawn in one batch, the prompt left out.

    Global random state and the model's mode are left as they were.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    start = start_ids(tokenizer, prompt).to(device).expand(num_samples, -1)
    training = model.training
    model.eval()
    drawn = list(decode(model, start, max_new_tokens, rule or SamplingRule(), generator))
    model.train(training)
    return (
        [tokenizer.decode(row) for row in torch.stack(drawn, dim=1)]
        if drawn
        else [""] * num_samples
    )
