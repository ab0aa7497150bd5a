"""Losses of n-gram counts, as baselines for a model's losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
MAX_TABLE_SIZE = 2**24  # above it, n-grams are counted by sorting


@dataclass(frozen=True)
class NGram:
    """Losses of an n-gram model, in nats per character.

    Args:
        n: length of the n-grams; a character is predicted from the n - 1 before it.
        entropy: conditional entropy of the counts of the train split. No model that sees n - 1
            characters can have a lower loss on that split.
        held_out: mean loss on the val split, with one added to each count (Laplace smoothing).
    """

    n: int
    entropy: float
    held_out: float

    @property
    def name(self) -> str:
        """unigram, bigram or trigram."""
        return NAMES[self.n]


def evaluate_ngrams(train: Tensor, val: Tensor, vocab_size: int) -> list[NGram]:
    """Count the n-grams of the train ids (N,) and evaluate them on the val ids (M,).

    Models whose n exceeds the length of a split are left out.
    """
    models = []
    for n in (n for n in NAMES if n <= min(len(train), len(val))):
        counted, in_val = (count_ngrams(ids, vocab_size, n) for ids in (train, val))
        entropy = mean_loss(counted, counted, vocab_size, pseudocount=0)
        models.append(NGram(n, entropy, mean_loss(counted, in_val, vocab_size, pseudocount=1)))
    return models


def count_ngrams(ids: Tensor, vocab_size: int, n: int) -> tuple[Tensor, Tensor]:
    """Return the distinct n-grams of ids (N,), sorted, and their counts, (G,) each.

    An n-gram is encoded as an integer to the base ``vocab_size``.
    """
    length = len(ids) - n + 1
    codes = ids[:length].long()
    for i in range(1, n):
        codes = codes * vocab_size + ids[i : i + length]
    if vocab_size**n > MAX_TABLE_SIZE:
        return codes.unique(return_counts=True)
    table = codes.bincount()
    grams = table.nonzero()[:, 0]
    return grams, table[grams]


def mean_loss(
    counted: tuple[Tensor, Tensor],
    evaluated: tuple[Tensor, Tensor],
    vocab_size: int,
    pseudocount: int,
) -> float:
    """Return the mean loss of some n-grams under the counts of others, in nats.

    ``pseudocount`` is added to each count. If it is 0, all evaluated n-grams must be counted.
    """
    grams, counts = counted
    contexts, context_of = (grams // vocab_size).unique_consecutive(return_inverse=True)
    totals = torch.zeros(len(contexts), dtype=torch.long).index_add(0, context_of, counts)
    codes, weights = evaluated
    count = find_counts(codes, grams, counts) + pseudocount
    total = find_counts(codes // vocab_size, contexts, totals) + pseudocount * vocab_size
    return float((weights * (total.double().log() - count.double().log())).sum() / weights.sum())


def find_counts(codes: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
    """Return the counts (M,) of codes (M,), given sorted keys (K,) and their counts (K,)."""
    index = torch.searchsorted(keys, codes).clamp(max=len(keys) - 1)
    return counts[index] * (keys[index] == codes)
