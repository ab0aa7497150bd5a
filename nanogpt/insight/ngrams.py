"""Losses of n-gram counts, as baselines for a model's losses."""

from dataclasses import dataclass
from typing import NamedTuple

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


class Counts(NamedTuple):
    """The distinct n-grams of a text and the contexts, their first n - 1 characters, as codes.

    All sorted by code: ``grams`` and their ``counts`` (G,), ``contexts`` and their ``totals`` (K,),
    and ``context_of`` (G,), the index of each n-gram's context.
    """

    grams: Tensor
    counts: Tensor
    contexts: Tensor
    totals: Tensor
    context_of: Tensor


def evaluate_ngrams(train: Tensor, val: Tensor, vocab_size: int) -> list[NGram]:
    """Count the n-grams of the train ids (N,) and evaluate them on the val ids (M,).

    Models whose n exceeds the length of a split are left out.
    """
    models = []
    for n in NAMES:
        if n <= min(len(train), len(val)):
            counts = count_ngrams(train, vocab_size, n)
            held_out = smoothed_loss(counts, val, vocab_size, n)
            models.append(NGram(n, conditional_entropy(counts), held_out))
    return models


def count_ngrams(ids: Tensor, vocab_size: int, n: int) -> Counts:
    """Count the n-grams of ids (N,)."""
    if vocab_size**n <= MAX_TABLE_SIZE:
        table = encode_ngrams(ids, vocab_size, n).bincount()
        grams = table.nonzero()[:, 0]
        counts = table[grams]
    else:
        grams, counts = encode_ngrams(ids, vocab_size, n).unique(return_counts=True)
    contexts, context_of = (grams // vocab_size).unique_consecutive(return_inverse=True)
    totals = torch.zeros(len(contexts), dtype=torch.long).index_add(0, context_of, counts)
    return Counts(grams, counts, contexts, totals, context_of)


def conditional_entropy(counts: Counts) -> float:
    """Return the entropy of a character given the n - 1 before it, in nats."""
    nats = counts.totals[counts.context_of].double().log() - counts.counts.double().log()
    return float((counts.counts * nats).sum() / counts.counts.sum())


def smoothed_loss(counts: Counts, ids: Tensor, vocab_size: int, n: int) -> float:
    """Return the mean loss on ids (N,), in nats, with one added to each count."""
    grams = encode_ngrams(ids, vocab_size, n)
    count = find_counts(grams, counts.grams, counts.counts).double() + 1
    total = find_counts(grams // vocab_size, counts.contexts, counts.totals).double() + vocab_size
    return float((total.log() - count.log()).mean())


def encode_ngrams(ids: Tensor, vocab_size: int, n: int) -> Tensor:
    """Encode the n-grams of ids (N,) as integers to the base ``vocab_size``: (N - n + 1,)."""
    length = len(ids) - n + 1
    codes = ids[:length].long()
    for i in range(1, n):
        codes = codes * vocab_size + ids[i : i + length]
    return codes


def find_counts(codes: Tensor, keys: Tensor, counts: Tensor) -> Tensor:
    """Return the counts (M,) of codes (M,), given sorted keys (K,) and their counts (K,)."""
    index = torch.searchsorted(keys, codes).clamp(max=len(keys) - 1)
    return counts[index] * (keys[index] == codes)
