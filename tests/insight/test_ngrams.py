"""Losses of n-gram counts equal those of a plain implementation and known closed forms."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanogpt.insight.ngrams import NGram, count_ngrams, evaluate_ngrams
from nanogpt.text.tokenizer import Tokenizer
from tests.command_lines import SHARED_TEXT

hypothesis_settings = settings(derandomize=True, deadline=None, max_examples=50)
MAX_TABLE_SIZE = "nanogpt.insight.ngrams.MAX_TABLE_SIZE"


def grams_of(ids: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def plain(train: list[int], val: list[int], vocab_size: int, n: int) -> tuple[float, float]:
    """The entropy of train and the add-one loss on val, computed one n-gram at a time."""
    grams = Counter(grams_of(train, n))
    contexts = Counter(gram[:-1] for gram in grams_of(train, n))
    nats = [math.log(contexts[gram[:-1]] / grams[gram]) for gram in grams_of(train, n)]
    losses = [
        math.log((contexts[gram[:-1]] + vocab_size) / (grams[gram] + 1))
        for gram in grams_of(val, n)
    ]
    return sum(nats) / len(nats), sum(losses) / len(losses)


def some_ids(length: int, vocab_size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (length,), generator=generator).int()


splits = st.integers(1, 5).flatmap(
    lambda vocab_size: st.tuples(
        *[st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=40)] * 2,
        st.just(vocab_size),
    )
)


@pytest.mark.parametrize("max_table_size", [0, 2**24])
@hypothesis_settings
@given(splits)
def test_losses_equal_those_of_a_plain_implementation(
    max_table_size: int, texts: tuple[list[int], list[int], int]
) -> None:
    train, val, vocab_size = texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MAX_TABLE_SIZE, max_table_size)
        scores = evaluate_ngrams(torch.tensor(train).byte(), torch.tensor(val).byte(), vocab_size)
    assert [score.n for score in scores] == [n for n in (1, 2, 3) if n <= len(train)][: len(val)]
    for score in scores:
        expected = plain(train, val, vocab_size, score.n)
        assert (score.entropy, score.held_out) == pytest.approx(expected, abs=1e-12)


def test_counting_in_a_table_equals_counting_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = some_ids(2_000, 11)
    for n in (1, 2, 3):
        monkeypatch.setattr(MAX_TABLE_SIZE, 11**n)
        by_table = count_ngrams(ids, 11, n)
        monkeypatch.setattr(MAX_TABLE_SIZE, 11**n - 1)
        assert all(a.equal(b) for a, b in zip(by_table, count_ngrams(ids, 11, n), strict=True))


def test_independent_uniform_characters_have_the_logarithm_of_their_number_as_loss() -> None:
    for score in evaluate_ngrams(some_ids(200_000, 5), some_ids(20_000, 5, seed=1), 5):
        assert score.entropy == pytest.approx(math.log(5), abs=1e-3)
        assert score.held_out == pytest.approx(math.log(5), abs=1e-3)


def test_cycle_is_certain_given_one_character() -> None:
    cycle = (torch.arange(60) % 6).byte()
    unigram, bigram, trigram = evaluate_ngrams(torch.cat([cycle, cycle[:1]]), cycle, 6)
    assert unigram.entropy == pytest.approx(math.log(6), abs=2e-3)
    assert bigram.entropy == trigram.entropy == 0
    assert bigram.held_out == pytest.approx(math.log((10 + 6) / (10 + 1)))


def test_unseen_context_gives_a_uniform_distribution() -> None:
    _, bigram, trigram = evaluate_ngrams(torch.tensor([0, 0, 0, 0]), torch.tensor([1, 2, 1, 2]), 7)
    assert bigram.held_out == trigram.held_out == pytest.approx(math.log(7))


def test_entropy_decreases_with_context() -> None:
    text = [(i * i + i // 7) % 5 for i in range(500)]
    scores = evaluate_ngrams(torch.tensor(text), torch.tensor(text), 5)
    assert all(more.entropy < less.entropy for less, more in pairwise(scores))


@pytest.mark.parametrize(("train", "val", "n"), [(1, 9, 1), (9, 1, 1), (2, 9, 2), (9, 2, 2)])
def test_split_shorter_than_n_has_no_n_gram_model(train: int, val: int, n: int) -> None:
    scores = evaluate_ngrams(some_ids(train, 3), some_ids(val, 3), 3)
    assert [score.name for score in scores] == ["unigram", "bigram", "trigram"][:n]
    assert all(math.isfinite(score.entropy + score.held_out) for score in scores)


def test_vocabulary_of_all_of_unicode() -> None:
    vocab_size = 0x110000
    train, val = some_ids(500, vocab_size), some_ids(500, vocab_size)[100:300]
    for score in evaluate_ngrams(train, val, vocab_size):
        expected = plain(train.tolist(), val.tolist(), vocab_size, score.n)
        assert (score.entropy, score.held_out) == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(not SHARED_TEXT.is_file(), reason="no tiny Shakespeare on this machine")
def test_bigram_of_tiny_shakespeare_has_the_published_losses() -> None:
    text = SHARED_TEXT.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_text(text)
    ids, n_train = tokenizer.encode(text), len(text) * 9 // 10
    scores = evaluate_ngrams(ids[:n_train], ids[n_train:], len(tokenizer.vocabulary))
    assert scores[1] == NGram(2, pytest.approx(2.452, abs=5e-4), pytest.approx(2.482, abs=5e-4))
