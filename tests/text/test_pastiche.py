"""The built-in corpus is reproducible, and its entropy and losses are exact."""

import hashlib
import math
from collections import Counter
from itertools import islice, permutations
from string import ascii_letters

import pytest

from nanogpt.text.pastiche import SOURCE, Source, pastiche, splitmix64

# P(A -> A) = 1/2 and P(B -> B) = 1/4, so three fifths of the tokens are from A.
TOY = Source("A", {"A": (("ab", 2, "A"), ("ac", 2, "B")), "B": (("d", 3, "A"), ("ee", 1, "B"))})


def test_splitmix64_equals_published_values() -> None:
    # For the seed 1234567, in Rosetta Code's "Pseudo-random numbers/Splitmix64".
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(1234567), 3)) == published


def test_text_has_the_expected_checksum() -> None:
    digest = hashlib.sha256(pastiche().encode()).hexdigest()
    assert digest == "69b51aa9f623423a78186c25df4487c77c32a46e293f4866116f1d1206219715", (
        "the built-in corpus has changed, and with it all losses on it; if this is intended, "
        f"expect {digest}"
    )
    assert 1_050_000 <= len(pastiche()) <= 1_150_000


def test_both_splits_contain_the_characters_of_tiny_shakespeare_often() -> None:
    characters = set("\n !$&',-.3:;?" + ascii_letters)
    assert len(characters) == 65
    boundary = len(pastiche()) * 9 // 10
    for split in (pastiche()[:boundary], pastiche()[boundary:]):
        counts = Counter(split)
        assert counts.keys() == characters
        assert min(counts.values()) >= 100


def test_tokens_of_a_state_are_prefix_free() -> None:
    for choices in SOURCE.choices.values():
        for (token, _, _), (other, _, _) in permutations(choices, 2):
            assert not other.startswith(token)


def test_last_token_determines_the_state() -> None:
    states: dict[str, str] = {}
    for choices in SOURCE.choices.values():
        for token, _, target in choices:
            assert states.setdefault(token, target) == target, token


def test_entropy_rate_and_losses_of_a_toy_source() -> None:
    nats = 0.6 * math.log(2) + 0.4 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    characters = 0.6 * 2 + 0.4 * (0.75 * 1 + 0.25 * 2)
    assert TOY.entropy_rate() == pytest.approx(nats / characters, rel=1e-14)
    # "a" is certain in A; a single "e" is a token cut at the end of the text.
    expected = [0, math.log(2), 0, math.log(2), math.log(4), 0, math.log(4 / 3), 0, math.log(2)]
    assert TOY.exact_losses("abaceedac") == pytest.approx(expected, abs=1e-15)
    assert TOY.exact_losses("ace") == pytest.approx([0, math.log(2), math.log(4)], abs=1e-15)


def test_generated_text_has_the_entropy_rate_of_its_source() -> None:
    text = TOY.generate(100_000, seed=3)
    assert sum(TOY.exact_losses(text)) / len(text) == pytest.approx(TOY.entropy_rate(), rel=0.01)
    losses = SOURCE.exact_losses(pastiche())
    assert len(losses) == len(pastiche())
    assert sum(losses) / len(losses) == pytest.approx(SOURCE.entropy_rate(), rel=0.005)
    val = losses[len(losses) * 9 // 10 :]
    assert sum(val) / len(val) == pytest.approx(SOURCE.entropy_rate(), rel=0.01)


def test_entropy_rate_equals_that_of_the_stationary_distribution() -> None:
    p = dict.fromkeys(SOURCE.choices, 1 / len(SOURCE.choices))
    for _ in range(500):  # a lazy chain, which converges even if the chain is periodic
        new = {state: p_state / 2 for state, p_state in p.items()}
        for state, choices in SOURCE.choices.items():
            total = sum(weight for _, weight, _ in choices)
            for _, weight, target in choices:
                new[target] += p[state] / 2 * weight / total
        p = new
    nats = characters = 0.0
    for state, choices in SOURCE.choices.items():
        total = sum(weight for _, weight, _ in choices)
        for token, weight, _ in choices:
            nats -= p[state] * weight / total * math.log(weight / total)
            characters += p[state] * weight / total * len(token)
    assert SOURCE.entropy_rate() == pytest.approx(nats / characters, rel=1e-9)
    assert 0.5 < SOURCE.entropy_rate() < 0.9


def test_losses_of_the_characters_of_a_token_add_up() -> None:
    text = pastiche()[:100_000]
    losses = SOURCE.exact_losses(text)
    position, state, tokens = 0, SOURCE.start, 0
    while position < len(text) - 40:  # no token is longer, so all are complete
        (token, weight, target), *others = (
            choice for choice in SOURCE.choices[state] if text.startswith(choice[0], position)
        )
        assert not others
        total = sum(weight for _, weight, _ in SOURCE.choices[state])
        loss = sum(losses[position : position + len(token)])
        assert loss == pytest.approx(-math.log(weight / total), abs=1e-12)
        position, state, tokens = position + len(token), target, tokens + 1
    assert tokens > 10_000


@pytest.mark.parametrize(
    ("opening", "state"),
    [("", "speaker"), ("Nurse Emm:\n", "verse"), ("Nurse Emm:\nEat the old ", "bare thing")],
)
def test_losses_are_ratios_of_prefix_probabilities(opening: str, state: str) -> None:
    choices = SOURCE.choices[state]

    def total_weight(prefix: str) -> int:
        return sum(weight for token, weight, _ in choices if token.startswith(prefix))

    for token, _, _ in choices:
        expected = [
            -math.log(total_weight(token[: end + 1]) / total_weight(token[:end]))
            for end in range(len(token))
        ]
        losses = SOURCE.exact_losses(opening + token)[len(opening) :]
        assert losses == pytest.approx(expected, abs=1e-12)


def test_text_of_another_source_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"'z' at position 19 cannot follow 'Nurse Emm"):
        SOURCE.exact_losses("Nurse Emm:\nEat the z")
    with pytest.raises(ValueError, match="from its start"):
        SOURCE.exact_losses(pastiche()[5:])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            (("love", 1, "A"), ("hate", 1, "A"), ("lovely", 1, "A")),
            "'love' is a prefix of 'lovely'",
        ),
        ((("love", 1, "A"), ("love", 1, "A")), "'love' is a prefix of 'love'"),
        ((("", 1, "A"),), "pass a non-empty token"),
        ((("love", 0, "A"),), "weight of at least 1"),
        ((("love", 1, "B"),), "a next state that exists"),
    ],
)
def test_invalid_choices_are_rejected(
    choices: tuple[tuple[str, int, str], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Source("A", {"A": choices})


def test_source_that_never_returns_to_its_start_has_no_entropy_rate() -> None:
    source = Source("A", {"A": (("a", 1, "A"), ("b", 1, "B")), "B": (("c", 1, "B"),)})
    with pytest.raises(ValueError, match="no path from 'B'"):
        source.entropy_rate()
