"""A mock-Elizabethan play made by a small grammar of our own, whose exact loss is known.

It is the corpus of a machine without a network, and a yardstick: no model's expected loss can be
below `entropy_rate`, and `exact_losses` gives what each character costs the ideal predictor.
The words, the names and the rules are this project's own; nothing is quoted.
"""

import functools
import math
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

LENGTH = 1_100_000  # characters, about as many as tiny Shakespeare; the last speech is finished
SEED = 1623

Choice = tuple[str, int, str]  # spelling, weight, next state
Node = dict[str, tuple[float, "Node"]]  # next character -> its loss in nats, where it leads
Rule = tuple[int, str, str]  # share of the state, words, their endings or the state after a space


@dataclass(frozen=True)
class Source:
    """A Markov chain that spells a text: in each state it writes one token and moves on.

    `choices` maps each state to its (spelling, weight, next state) triples; probabilities are
    proportional to the weights. `start` is the state in which every text begins.

    Raises `ValueError` where the spelling would not name the path: an empty token, a token that
    begins another of its state, a weight below one, or a next state that does not exist.
    """

    start: str
    choices: Mapping[str, tuple[Choice, ...]]

    def __post_init__(self) -> None:
        assert self.start in self.choices, self.start
        for state, choices in self.choices.items():
            for token, weight, target in choices:
                if not token or weight < 1 or target not in self.choices:
                    raise ValueError(
                        f"state {state!r} has the choice {(token, weight, target)}; it needs a "
                        "spelling, a weight of at least one and a next state that exists"
                    )
            # In sorted order a token that begins others stands right before one of them.
            for token, following in pairwise(sorted(token for token, _, _ in choices)):
                if following.startswith(token):
                    raise ValueError(
                        f"in state {state!r} the token {token!r} begins {following!r}; "
                        "end them so that neither begins the other"
                    )

    def write(self, length: int, seed: int) -> str:
        """The text of at least `length` characters up to the first return to the start.

        Integer arithmetic only, so that a seed gives the same text on every machine.
        """
        cumulative = {
            state: list(accumulate(weight for _, weight, _ in choices))
            for state, choices in self.choices.items()
        }
        tokens: list[str] = []
        written, state = 0, self.start
        for draw in splitmix64(seed):
            weights = cumulative[state]
            token, _, state = self.choices[state][bisect(weights, (draw * weights[-1]) >> 64)]
            tokens.append(token)
            written += len(token)
            if written >= length and state == self.start:
                break
        return "".join(tokens)

    def entropy_rate(self) -> float:
        """Nats per character: expected nats over expected characters from start to start.

        Raises `ValueError` where the chain can leave the start for good.
        Source: the renewal-reward theorem, by the state elimination of Grassmann, Taksar and
        Heyman, "Regenerative Analysis and Steady State Distributions for Markov Chains", 1985.
        """
        flows: dict[str, dict[str, float]] = {}
        nats, characters = dict.fromkeys(self.choices, 0.0), dict.fromkeys(self.choices, 0.0)
        for state, choices in self.choices.items():
            total = sum(weight for _, weight, _ in choices)
            flows[state] = dict.fromkeys(self.choices, 0.0)
            for token, weight, target in choices:
                flows[state][target] += weight / total
                nats[state] += weight / total * math.log(total / weight)
                characters[state] += weight / total * len(token)
        # Whoever would go to a state taken out goes where it leads, and writes what it writes.
        for gone in (state for state in self.choices if state != self.start):
            onward = {target: share for target, share in flows.pop(gone).items() if target != gone}
            leaving = sum(onward.values())
            if not leaving:
                raise ValueError(f"no way back from {gone!r} to the start {self.start!r}; add one")
            for state, flow in flows.items():
                visits = flow.pop(gone) / leaving
                nats[state] += visits * nats[gone]
                characters[state] += visits * characters[gone]
                for target, share in onward.items():
                    flow[target] += visits * share
        return nats[self.start] / characters[self.start]

    def exact_losses(self, text: str) -> list[float]:
        """-ln P(character | all before it) in nats, one for each character of `text`.

        `text` begins where the source does (for `pastiche`, with a speaker's name) and may stop
        anywhere; its last token may be cut. A token's losses add up to its -ln probability.

        Raises `ValueError` where the source cannot have written `text`.
        """
        roots: dict[str, Node] = {state: {} for state in self.choices}
        for state, choices in self.choices.items():
            _spell(roots[state], choices, 0, roots)
        losses = []
        node = roots[self.start]
        for position, character in enumerate(text):
            if character not in node:
                raise ValueError(
                    f"{character!r} at position {position} cannot follow "
                    f"{text[max(0, position - 20) : position]!r}; pass a text of this source "
                    "from a beginning"
                )
            loss, node = node[character]
            losses.append(loss)
        return losses


def splitmix64(seed: int) -> Iterator[int]:
    """Endless uniform integers in [0, 2**64), the same on every machine.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    mask = 2**64 - 1
    while True:
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        mixed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
        yield mixed ^ (mixed >> 31)


def _spell(node: Node, choices: tuple[Choice, ...], depth: int, roots: dict[str, Node]) -> None:
    """Fill `node` with the characters at `depth` of `choices`, which agree before it."""
    total = sum(weight for _, weight, _ in choices)
    for character in dict.fromkeys(token[depth] for token, _, _ in choices):
        sharing = tuple(choice for choice in choices if choice[0][depth] == character)
        child: Node = {}
        if len(sharing[0][0]) == depth + 1:  # prefix-free, so nothing else shares this spelling
            child = roots[sharing[0][2]]
        else:
            _spell(child, sharing, depth + 1, roots)
        node[character] = math.log(total / sum(weight for _, weight, _ in sharing)), child


# A word tells what may follow it, so the last one is all that counts: each has one part of speech,
# a capital opens a line, and the punctuation says where the line and the speech stand. The words of
# a list begin with different letters, so that a small model can learn their spelling in seconds.
_SPEAKERS = (
    "Queen Zelda/Duke Xandor/Friar Job/Lady Ulva/Vizier Kex/Old Yestin/Jinx & Knob/Watchman 3/"
    "Captain Vor/Gammer Hux/Sir Pip/Bishop Gruel/Nurse Emm"
)
_NAMES = "Ros/Hob/Cuthwin/Pipkin/Zeb/Dorcas/Xan/Ulf/Vesper/Gill/Kestra/Jorund/Quorrel"
_PERSONS = "king/widow/jester/baker/friar/squire/queen/monk/owl/thief/vicar/hermit/piper/elf/cook"
_TEMPERS = "young/ink-stained/royal/ale-fed/unwed"
_THINGS = "crown/goose/sword/hat/pie/jug/lamp/boot/quill/drum/toad/mule/ring/fig/kite/veil/wig/nose"
_LOOKS = "old/azure/empty/ugly/itchy"
_DID = "hid/kissed/broke/lost/forgot/pawned/juggled/tore/drew/vexed/ate/robbed/quit"
_DO = "love/steal/mend/hide/kiss/vex/fear/juggle/pawn/bless/trust/wash/quit/eat/rob/adore/drop"
_MANNERS = "at dawn/by night/in jest/for $3/on bread & ale/with zeal/till noon"
_ENDINGS: dict[str, tuple[Choice, ...]] = {
    "colon": ((":\n", 1, "verse"),),
    "blank line": (("\n", 1, "speaker"),),
    "cry": (("!\n", 1, "pause"),),
    "question": (("?\n", 1, "pause"),),
    "line": ((",\n", 10, "clause"), (".\n", 8, "pause"), (";\n", 4, "clause"), ("!\n", 3, "pause")),
}
_ENDINGS["line or manner"] = (*_ENDINGS["line"], (" ", 8, "manner"))
_VERSE: tuple[Rule, ...] = (
    (34, "The/My/Each/Our/Thy/No/Yon", "subject"),
    (20, _NAMES, "verb"),
    (20, "I/We/They/Ye", "verb"),
    (9, "Who bit/Where is/What ails", "asked"),
    (10, "Hark,/Rise,/O sweet/Peace,/Curse thee,", "called"),
    (8, "Mend/Bring/Eat/Fetch/Save/Lift", "object"),
)
_RULES: dict[str, tuple[Rule, ...]] = {
    "speaker": ((1, _SPEAKERS, "colon"),),
    "verse": _VERSE,
    "pause": (*_VERSE, (42, "", "blank line")),
    "clause": (
        (70, "And/But/For/Yet/While/Since/Though", "clause subject"),
        (30, "Upon/Near/O'er/Like", "object"),
    ),
    "clause subject": ((50, "I/she/we/he/they/ye", "verb"), (50, _NAMES, "verb")),
    "subject": ((45, _TEMPERS, "person"), (55, _PERSONS, "verb")),
    "person": ((1, _PERSONS, "verb"),),
    "verb": ((40, "would/must/shall/could/ne'er may", "act"), (60, _DID, "object")),
    "act": ((1, _DO, "object"),),
    "object": ((1, "the/my/thy/his/her/our/yon", "thing"),),
    "thing": ((35, _LOOKS, "bare thing"), (65, _THINGS, "line or manner")),
    "bare thing": ((1, _THINGS, "line or manner"),),
    "manner": ((1, _MANNERS, "line"),),
    "asked": ((1, _NAMES, "question"),),
    "called": ((1, _NAMES, "cry"),),
}


def _choices(rules: tuple[Rule, ...]) -> tuple[Choice, ...]:
    """A state's choices: each rule's words with their endings, earlier words the likelier."""
    groups: list[list[Choice]] = []
    for _, words, after in rules:
        spelled = words.split("/")
        endings = _ENDINGS.get(after, ((" ", 1, after),))
        groups.append(
            [
                (word + ending, (3 * len(spelled) - 2 * rank) * weight, target)
                for rank, word in enumerate(spelled)
                for ending, weight, target in endings
            ]
        )
    totals = [sum(weight for _, weight, _ in group) for group in groups]
    scale = math.lcm(*totals)  # so that a rule's share doesn't depend on how many words it has
    return tuple(
        (token, share * weight * (scale // total), target)
        for (share, _, _), group, total in zip(rules, groups, totals, strict=True)
        for token, weight, target in group
    )


SOURCE = Source("speaker", {state: _choices(rules) for state, rules in _RULES.items()})


@functools.cache
def pastiche() -> str:
    """The corpus: about 1.1 million characters, exactly the 65 of tiny Shakespeare."""
    return SOURCE.write(LENGTH, SEED)


def entropy_rate() -> float:
    """Nats per character of `pastiche`'s source: the least loss that any model can expect."""
    return SOURCE.entropy_rate()


def exact_losses(text: str) -> list[float]:
    """The ideal predictor's loss in nats on each character of `text`; see `Source.exact_losses`.

    For the last tenth of the corpus, slice the losses of the whole of it.
    """
    return SOURCE.exact_losses(text)
