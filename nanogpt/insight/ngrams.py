"""What counting alone achieves: n-gram models of a text, to hold a model's losses against.

A bigram model knows the last character, a trigram model the last two, a unigram model none.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = {1: "unigram", 2: "bigram", 3: "trigram"}
DENSE = 2**24  # n-grams that are counted in a table


@dataclass(frozen=True)
class NGram:
    """How well characters are told from the n - 1 before them, in nats per character.

    ``entropy`` is the exact conditional entropy of the counts of the train split: no model that
    sees n - 1 characters can have a lower loss on it. ``held_out`` is the mean loss on the val
    split of those counts, each with one added (Laplace), so that nothing is impossible.
    """

    n: int
    entropy: float
    held_out: float

    @property
    def name(self) -> str:
        """unigram, bigram or trigram."""
        return NAMES[self.n]


class Counts(NamedTuple):
    """The distinct n-grams of a text and their counts, and those of their first n - 1 characters.

    All sorted by code: ``grams`` and ``counts`` (G,), ``contexts`` and ``totals`` (K,), and
    ``context_of`` (G,), the place of each n-gram's context.
    """

    grams: Tensor
    counts: Tensor
    contexts: Tensor
    totals: Tensor
    context_of: Tensor


def ngrams(train: Tensor, val: Tensor, vocab_size: int) -> list[NGram]:
    """Count the train split into n-gram models and try them on the val split; ids (N,) both.

    A split shorter than n has no n-gram model.
    """
    scores = []
    for n in NAMES:
        if n <= min(len(train), len(val)):
            seen = count(train, vocab_size, n)
            scores.append(NGram(n, entropy(seen), held_out(seen, val, vocab_size, n)))
    return scores


def count(ids: Tensor, vocab_size: int, n: int) -> Counts:
    """Count the n-grams of ids (N,)."""
    if vocab_size**n <= DENSE:  # a place for each, with no need to sort
        every = codes(ids, vocab_size, n).bincount()
        grams = every.nonzero()[:, 0]
        counts = every[grams]
    else:
        grams, counts = codes(ids, vocab_size, n).unique(return_counts=True)
    contexts, context_of = (grams // vocab_size).unique_consecutive(return_inverse=True)
    totals = torch.zeros(len(contexts), dtype=torch.long).index_add(0, context_of, counts)
    return Counts(grams, counts, contexts, totals, context_of)


def entropy(seen: Counts) -> float:
    """Return the entropy of a character given the n - 1 before it, in nats."""
    surprise = seen.totals[seen.context_of].double().log() - seen.counts.double().log()
    return float((seen.counts * surprise).sum() / seen.counts.sum())


def held_out(seen: Counts, ids: Tensor, vocab_size: int, n: int) -> float:
    """Return the mean loss on ids (N,), in nats, of the counts with one added to each."""
    wanted = codes(ids, vocab_size, n)
    count = look_up(wanted, seen.grams, seen.counts).double() + 1
    total = look_up(wanted // vocab_size, seen.contexts, seen.totals).double() + vocab_size
    return float((total.log() - count.log()).mean())


def codes(ids: Tensor, vocab_size: int, n: int) -> Tensor:
    """Number the n-grams of ids (N,): (N - n + 1,), the last character in the lowest place."""
    windows = len(ids) - n + 1
    code = ids[:windows].long()
    for place in range(1, n):
        code = code * vocab_size + ids[place : place + windows]
    return code


def look_up(wanted: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return the values (M,) of the wanted among sorted keys (K,), 0 where there is none."""
    place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return values[place] * (keys[place] == wanted)
