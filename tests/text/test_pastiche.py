"""The built-in corpus: the same everywhere, tiny Shakespeare's characters, an exact known loss."""

import hashlib
import math
from collections import Counter
from itertools import islice, permutations
from string import ascii_letters

import pytest

from nanogpt.text.pastiche import SOURCE, Source, entropy_rate, exact_losses, pastiche, splitmix64

# Stays in A half of the time and in B a quarter of it, so three fifths of its tokens come from A.
TOY = Source("A", {"A": (("ab", 2, "A"), ("ac", 2, "B")), "B": (("d", 3, "A"), ("ee", 1, "B"))})


def test_random_numbers_are_the_published_ones() -> None:
    # For the seed 1234567, in Rosetta Code's "Pseudo-random numbers/Splitmix64".
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert list(islice(splitmix64(1234567), 3)) == published


def test_text_is_the_same_to_the_byte_everywhere() -> None:
    digest = hashlib.sha256(pastiche().encode()).hexdigest()
    assert digest == "69b51aa9f623423a78186c25df4487c77c32a46e293f4866116f1d1206219715", (
        "the built-in corpus has changed, and with it every loss measured on it; if that is what "
        f"you want, pin {digest}"
    )
    assert 1_050_000 <= len(pastiche()) <= 1_150_000


def test_every_character_of_tiny_shakespeare_is_common_in_both_splits() -> None:
    characters = set("\n !$&',-.3:;?" + ascii_letters)
    assert len(characters) == 65
    boundary = len(pastiche()) * 9 // 10
    for split in (pastiche()[:boundary], pastiche()[boundary:]):
        counts = Counter(split)
        assert counts.keys() == characters
        assert min(counts.values()) >= 100


def test_spelling_names_the_path() -> None:
    for choices in SOURCE.choices.values():
        for (token, _, _), (other, _, _) in permutations(choices, 2):
            assert not other.startswith(token)


def test_last_token_alone_tells_the_state() -> None:
    states: dict[str, str] = {}
    for choices in SOURCE.choices.values():
        for token, _, target in choices:
            assert states.setdefault(token, target) == target, token


def test_closed_forms_of_a_toy() -> None:
    nats = 0.6 * math.log(2) + 0.4 * (0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    characters = 0.6 * 2 + 0.4 * (0.75 * 1 + 0.25 * 2)
    assert TOY.entropy_rate() == pytest.approx(nats / characters, rel=1e-14)
    # "a" is certain in A; a single "e" is a token cut at the end of the text.
    expected = [0, math.log(2), 0, math.log(2), math.log(4), 0, math.log(4 / 3), 0, math.log(2)]
    assert TOY.exact_losses("abaceedac") == pytest.approx(expected, abs=1e-15)
    assert TOY.exact_losses("ace") == pytest.approx([0, math.log(2), math.log(4)], abs=1e-15)


def test_written_text_has_the_entropy_rate_of_its_source() -> None:
    text = TOY.write(100_000, seed=3)
    assert sum(TOY.exact_losses(text)) / len(text) == pytest.approx(TOY.entropy_rate(), rel=0.01)
    losses = exact_losses(pastiche())
    assert len(losses) == len(pastiche())
    assert sum(losses) / len(losses) == pytest.approx(entropy_rate(), rel=0.005)
    held_out = losses[len(losses) * 9 // 10 :]
    assert sum(held_out) / len(held_out) == pytest.approx(entropy_rate(), rel=0.01)


def test_entropy_rate_equals_that_of_the_stationary_distribution() -> None:
    visited = dict.fromkeys(SOURCE.choices, 1 / len(SOURCE.choices))
    for _ in range(500):  # half of each step stays, so that no period can keep it from settling
        onward = {state: share / 2 for state, share in visited.items()}
        for state, choices in SOURCE.choices.items():
            total = sum(weight for _, weight, _ in choices)
            for _, weight, target in choices:
                onward[target] += visited[state] / 2 * weight / total
        visited = onward
    nats = characters = 0.0
    for state, choices in SOURCE.choices.items():
        total = sum(weight for _, weight, _ in choices)
        for token, weight, _ in choices:
            nats -= visited[state] * weight / total * math.log(weight / total)
            characters += visited[state] * weight / total * len(token)
    assert entropy_rate() == pytest.approx(nats / characters, rel=1e-9)
    assert 0.5 < entropy_rate() < 0.9


def test_losses_of_a_token_add_up_to_its_own() -> None:
    text = pastiche()[:100_000]
    losses = exact_losses(text)
    position, state, tokens = 0, SOURCE.start, 0
    while position < len(text) - 40:  # no token is longer, so none is cut
        (token, weight, target), *others = (
            choice for choice in SOURCE.choices[state] if text.startswith(choice[0], position)
        )
        assert not others
        total = sum(weight for _, weight, _ in SOURCE.choices[state])
        spelled = sum(losses[position : position + len(token)])
        assert spelled == pytest.approx(-math.log(weight / total), abs=1e-12)
        position, state, tokens = position + len(token), target, tokens + 1
    assert tokens > 10_000


@pytest.mark.parametrize(
    ("opening", "state"),
    [("", "speaker"), ("Nurse Emm:\n", "verse"), ("Nurse Emm:\nEat the old ", "bare thing")],
)
def test_losses_are_ratios_of_the_masses_that_a_prefix_leaves(opening: str, state: str) -> None:
    choices = SOURCE.choices[state]

    def mass(prefix: str) -> int:
        return sum(weight for token, weight, _ in choices if token.startswith(prefix))

    for token, _, _ in choices:
        expected = [
            -math.log(mass(token[: end + 1]) / mass(token[:end])) for end in range(len(token))
        ]
        losses = exact_losses(opening + token)[len(opening) :]
        assert losses == pytest.approx(expected, abs=1e-12)


def test_a_text_that_the_source_cannot_have_written_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'z' at position 19 cannot follow 'Nurse Emm"):
        exact_losses("Nurse Emm:\nEat the z")
    with pytest.raises(ValueError, match="from a beginning"):
        exact_losses(pastiche()[5:])


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ((("love", 1, "A"), ("hate", 1, "A"), ("lovely", 1, "A")), "'love' begins 'lovely'"),
        ((("love", 1, "A"), ("love", 1, "A")), "'love' begins 'love'"),
        ((("", 1, "A"),), "needs a spelling"),
        ((("love", 0, "A"),), "weight of at least one"),
        ((("love", 1, "B"),), "a next state that exists"),
    ],
)
def test_a_source_whose_spelling_is_ambiguous_is_refused(
    choices: tuple[tuple[str, int, str], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Source("A", {"A": choices})


def test_a_source_that_leaves_its_start_for_good_has_no_rate() -> None:
    source = Source("A", {"A": (("a", 1, "A"), ("b", 1, "B")), "B": (("c", 1, "B"),)})
    with pytest.raises(ValueError, match="no way back from 'B'"):
        source.entropy_rate()
