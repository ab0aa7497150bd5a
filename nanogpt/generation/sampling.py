"""Sampling: pure functions from logits and random numbers to ids.

Axes: B batch, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.text.batches import hash_seed

GREEDY_BELOW = 1e-6  # below this temperature only ties could be drawn differently
UNIFORM_ABOVE = 1e30  # a higher temperature changes nothing, and may be infinite in float32
SMALLEST_TOP_P = 1e-30  # a lower one keeps the same characters, and may be zero in float32
STEPS_PER_DRAW = 64  # drawing the numbers of many steps in one call is faster


@dataclass(frozen=True)
class SamplingRule:
    """How the next character is drawn; raise UserError for a value out of range.

    Args:
        temperature: divides the logits; 1 samples from the model's distribution, lower values
            favor likely characters, 0 always takes the most likely one.
        top_k: only draw from the k most likely characters; null for no limit.
        top_p: only draw from the smallest set of most likely characters whose total probability is
            at least this, after temperature and ``top_k`` (nucleus sampling, Holtzman et al.,
            2020); null for no limit.
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
                f"temperature must be a finite number of at least 0, not {self.temperature}: 1 "
                "samples from the model's distribution, 0 always takes the most likely character"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, not {self.top_k}; omit it for no limit")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(
                f"top_p must be above 0 and at most 1, not {self.top_p}; omit it for no limit"
            )


def next_probabilities(logits: Tensor, rule: SamplingRule) -> Tensor:
    """Map logits (B, V) to the probabilities (B, V) that a rule draws from.

    Characters tied with the k-th most likely one are all kept, and likewise for ``top_p``. A
    ``top_k`` of at least V keeps all.
    """
    if rule.greedy:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    if rule.top_k is not None and rule.top_k < logits.shape[-1]:
        kth = logits.topk(rule.top_k).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if rule.temperature != 1:
        # subtract the largest logit first, so that a small temperature cannot overflow
        logits = logits - logits.amax(-1, keepdim=True)
        logits = logits / min(rule.temperature, UNIFORM_ABOVE)
    probabilities = logits.softmax(-1)
    if rule.top_p is not None and rule.top_p < 1:
        descending = probabilities.sort(-1, descending=True).values
        before = descending.cumsum(-1) - descending  # probability of the more likely characters
        kept = before < max(rule.top_p, SMALLEST_TOP_P)
        smallest = descending.masked_fill(~kept, torch.inf).amin(-1, keepdim=True)  # (B, 1)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def sample_ids(probabilities: Tensor, u: Tensor) -> Tensor:
    """Draw one id per row by inverting the cumulative distribution.

    Args:
        probabilities: (B, V).
        u: uniform random numbers in [0, 1), (B,).

    Returns: ids (B,): in each row the first one whose cumulative probability exceeds ``u``.
    """
    cumulative = probabilities.cumsum(-1)  # (B, V)
    # stays below the sum after rounding, so that no id of probability 0 can be drawn
    target = u.clamp(max=1 - 2**-22)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def uniform_streams(
    seed: int, num_samples: int, first: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Tensor]:
    """Yield one uniform random number in [0, 1) per sample, (num_samples,), without end.

    Sample i has its own random stream, seeded by (seed, i): its numbers depend neither on the other
    samples nor on the device.

    Args:
        seed: at least 0.
        num_samples: number of samples.
        first: index of the first sample.
        device: device of the result; the numbers are drawn on the CPU.
    """
    streams = [
        torch.Generator().manual_seed(hash_seed(seed, i)) for i in range(first, first + num_samples)
    ]
    while True:
        numbers = torch.stack([torch.rand(STEPS_PER_DRAW, generator=stream) for stream in streams])
        yield from numbers.to(device).unbind(1)
