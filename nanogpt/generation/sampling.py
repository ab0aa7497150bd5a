"""Sampling rules: pure functions from logits to the ids that are drawn."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.text.batches import mix

GREEDY_BELOW = 1e-6  # a temperature at which only ties could be drawn otherwise
AT_A_TIME = 64  # steps for which chance is drawn in one go


@dataclass(frozen=True)
class SamplingRule:
    """How the next character is drawn.

    Args:
        temperature: divides the logits; 1 samples from the model as it is, lower is more
            cautious, 0 always takes the most likely character.
        top_k: draw only among the k most likely characters; None draws among all.
        top_p: draw only among the fewest characters, the likeliest first, that together have at
            least this probability, after temperature and ``top_k`` (nucleus sampling, Holtzman
            et al., 2020); None draws among all.

    Raises:
        UserError: if ``temperature`` is negative or not finite, ``top_k`` is below 1, or ``top_p``
            is not in (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    @property
    def greedy(self) -> bool:
        """Whether it always takes the most likely character."""
        return self.temperature < GREEDY_BELOW

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
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p must be above 0 and at most 1, not {self.top_p}; leave it out for no limit"
            )


def next_probabilities(logits: Tensor, rule: SamplingRule) -> Tensor:
    """Return the distribution that a rule draws from: (B, V) logits to (B, V) probabilities.

    With ties at the k-th place, all of the tied characters stay; likewise at the edge of
    ``top_p``. A ``top_k`` of at least V keeps all.
    """
    if rule.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if rule.top_k is not None and rule.top_k < logits.shape[-1]:
        kth = logits.topk(rule.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if rule.temperature != 1:
        # the largest logit is taken off first, so that a small temperature cannot overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / rule.temperature
    probabilities = logits.softmax(-1)
    if rule.top_p is not None and rule.top_p < 1:
        falling = probabilities.sort(-1, descending=True).values
        enough = falling.cumsum(-1) - falling < rule.top_p  # what stands before is not yet enough
        least = falling.masked_fill(~enough, torch.inf).amin(-1, keepdim=True)  # (B, 1)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: Tensor, chance: Tensor) -> Tensor:
    """Draw one id a row by inverting the cumulative distribution.

    Args:
        probabilities: (B, V).
        chance: uniform numbers in [0, 1), (B,).

    Returns: (B,) ids: the first whose cumulative probability is above the number.
    """
    cumulative = probabilities.cumsum(-1)  # (B, V)
    # below the sum also after rounding, so that no id of probability 0 can be drawn
    goal = chance.clamp(max=1 - 2**-22)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, goal, right=True).squeeze(1)


def uniform_streams(
    seed: int, num_samples: int, first: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield, for ever, a uniform number for each of some samples, (num_samples,).

    Sample i has a random stream of its own, given by (seed, i): what is drawn for it depends on
    neither the other samples nor the device.

    Args:
        seed: of the draws, from 0.
        num_samples: how many samples there are.
        first: the number of the first of them.
        device: to put the numbers on; they are drawn on the CPU.
    """
    streams = [
        torch.Generator().manual_seed(mix(seed, i)) for i in range(first, first + num_samples)
    ]
    while True:
        numbers = torch.stack([torch.rand(AT_A_TIME, generator=stream) for stream in streams])
        yield from numbers.to(device).unbind(1)
