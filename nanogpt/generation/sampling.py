"""Sampling rules: pure functions from logits to the ids that are drawn."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.errors import UserError

GREEDY_BELOW = 1e-6  # a temperature at which only ties could be drawn otherwise


@dataclass(frozen=True)
class SamplingRule:
    """How the next character is drawn.

    Args:
        temperature: divides the logits; 1 samples from the model as it is, lower is more
            cautious, 0 always takes the most likely character.
        top_k: draw only among the k most likely characters; None draws among all.

    Raises:
        UserError: if ``temperature`` is negative or not finite, or ``top_k`` is below 1.
    """

    temperature: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature must be a number of at least 0, not {self.temperature}: 1 samples "
                "from the model as it is, 0 always takes the most likely character"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(
                f"top_k must be at least 1, not {self.top_k}; leave it out for no limit"
            )


def next_probabilities(logits: Tensor, rule: SamplingRule) -> Tensor:
    """Return the distribution that a rule draws from: (B, V) logits to (B, V) probabilities.

    With ties at the k-th place, all of the tied characters stay. A ``top_k`` of at least V
    keeps all.
    """
    if rule.temperature < GREEDY_BELOW:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    if rule.top_k is not None and rule.top_k < logits.shape[-1]:
        kth = logits.topk(rule.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    # the largest logit is taken off first, so that a small temperature cannot overflow
    return ((logits - logits.amax(-1, keepdim=True)) / rule.temperature).softmax(-1)


def draw(probabilities: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one id a row: (B, V) probabilities to (B,) ids."""
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
