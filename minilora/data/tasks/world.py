"""The small world of the encoder's tasks: its words, its facts, and the sentences about them.

A fact says who does what to whom: an agent, a verb, a patient, and perhaps an adjective of the
agent, a place and a negation. A sentence is a fact in the active or the passive voice:

    the old dogs do not find the car in the park
    the car is not found by the old dogs in the park

Two words of one pair below mean the same. Every noun is of one kind: people and animals do
something, vehicles and tools have it done to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

T = TypeVar("T")

KINDS = {  # the word for each kind, singular and plural, and its nouns
    ("person", "people"): "doctor physician kid:kids child:children",
    ("animal", "animals"): "dog hound rabbit bunny:bunnies",
    ("vehicle", "vehicles"): "car auto ship boat",
    ("tool", "tools"): "hammer mallet knife:knives blade",
}
SAME_NOUNS = ("doctor physician", "kid child", "dog hound", "rabbit bunny", "car auto",
              "ship boat", "hammer mallet", "knife blade")
VERBS = {  # plural: (singular, participle)
    "see": ("sees", "seen"), "notice": ("notices", "noticed"),
    "hit": ("hits", "hit"), "strike": ("strikes", "struck"),
    "find": ("finds", "found"), "discover": ("discovers", "discovered"),
}
SAME_VERBS = ("see notice", "hit strike", "find discover")
ADJECTIVES = ("big", "large", "small", "little", "old", "ancient")
SAME_ADJECTIVES = ("big large", "small little", "old ancient")
PLACES = ("park", "garden", "forest")
BESIDE = ("near", "behind", "beside")

PLURAL: dict[str, str] = {}  # noun -> its plural, the words for kinds too
KIND: dict[str, str] = {}  # noun -> the word for its kind
for (_one, _many), _nouns in KINDS.items():
    PLURAL[_one] = _many
    for _noun in _nouns.split():
        _single, _, _several = _noun.partition(":")
        PLURAL[_single], KIND[_single] = _several or f"{_single}s", _one
NOUNS = tuple(KIND)
SLOTS = {  # of a fact: who, does what, to what, and more about it
    "agent": tuple(x for x in NOUNS if KIND[x] in ("person", "animal")), "verb": tuple(VERBS),
    "patient": tuple(x for x in NOUNS if KIND[x] in ("vehicle", "tool")),
    "adjective": ADJECTIVES, "place": PLACES,
}
SYNONYM = {  # word -> the other word of its pair
    a: b for pair in (*SAME_NOUNS, *SAME_VERBS, *SAME_ADJECTIVES)
    for a, b in (pair.split(), reversed(pair.split()))
}


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one item, each with the same probability."""
    return items[int(rng.integers(len(items)))]


def other(rng: np.random.Generator, items: Sequence[str], word: str) -> str:
    """Return an item that does not mean the same as a word."""
    return pick(rng, [x for x in items if x not in (word, SYNONYM.get(word))])


@dataclass(frozen=True)
class Fact:
    """agent, verb, patient, adjective, place: words of SLOTS; of the last two perhaps "".

    agents, patients: whether there are several of them.   negated: whether it is denied.
    """

    agent: str
    verb: str
    patient: str
    adjective: str = ""
    place: str = ""
    agents: bool = False
    patients: bool = False
    negated: bool = False

    def says(self, passive: bool = False, beside: str = "") -> str:
        """Return the sentence; beside: words after the agent, such as "near the dogs"."""
        agent = " ".join(filter(None, (
            "the", self.adjective, PLURAL[self.agent] if self.agents else self.agent, beside)))
        patient = f"the {PLURAL[self.patient] if self.patients else self.patient}"
        place = f" in the {self.place}" if self.place else ""
        singular, participle = VERBS[self.verb]
        if passive:
            be = ("are" if self.patients else "is") + " not" * self.negated
            return f"{patient} {be} {participle} by {agent}{place}"
        if self.negated:
            verb = f"{'do' if self.agents else 'does'} not {self.verb}"
        else:
            verb = self.verb if self.agents else singular
        return f"{agent} {verb} {patient}{place}"

    def word(self, slot: str) -> str:
        """Return the word in a place of SLOTS."""
        word: str = getattr(self, slot)
        return word

    def but(self, words: Mapping[str, str]) -> Fact:
        """Return the fact with other words in some places, such as {"verb": "see"}."""
        return replace(self, **words)  # type: ignore[arg-type]


def fact(
    rng: np.random.Generator, adjective: float = 1.0, place: float = 1.0, negated: float = 0.0,
    several: float = 0.0,
) -> Fact:
    """Draw a fact; adjective, place, negated, several: the probability of each."""
    drawn = {slot: pick(rng, words) for slot, words in SLOTS.items()}
    drawn |= {slot: "" for slot, chance in (("adjective", adjective), ("place", place))
              if rng.random() >= chance}
    return Fact(
        **drawn, agents=bool(rng.random() < several),
        patients=bool(rng.random() < several), negated=bool(rng.random() < negated),
    )


def reworded(rng: np.random.Generator, x: Fact, share: float = 0.5) -> Fact:
    """Return the fact with a synonym in place of each word that has one, with a probability."""
    def word(one: str) -> str:
        return SYNONYM[one] if one in SYNONYM and rng.random() < share else one

    return replace(x, agent=word(x.agent), verb=word(x.verb), patient=word(x.patient),
                   adjective=word(x.adjective))


# Reviews: a thing is praised or not.
THINGS = {"film": "films", "song": "songs", "meal": "meals", "story": "stories", "room": "rooms",
          "game": "games"}
GOOD = ("great", "good", "lovely", "fine", "superb", "charming", "clever", "fresh", "warm",
        "funny", "bright", "nice")
BAD = ("bad", "awful", "dull", "poor", "boring", "weak", "cheap", "cold", "sad", "stale", "ugly",
       "tedious")
LIKE, DISLIKE = ("love", "enjoy", "adore"), ("hate", "dislike", "regret")
STRONG = ("very", "really", "quite")


def opinion(rng: np.random.Generator, good: bool, plain: bool = False) -> str:
    """Draw a clause that praises something, or that does not: "the songs are not very good".

    plain: without negation, and with words of one polarity alone.
    """
    denied = not plain and rng.random() < 0.25
    plus = good != denied  # the polarity of its words
    thing = pick(rng, tuple(THINGS))
    several = bool(rng.integers(2))
    strong = pick(rng, STRONG) if rng.random() < 0.3 else ""
    noun = THINGS[thing] if several else thing
    if rng.random() < 0.3:
        verb = pick(rng, LIKE if plus else DISLIKE)
        no = "do not" if denied else ""
        return " ".join(filter(None, ("i", no, strong if strong != "very" else "", verb, "the",
                                      noun)))
    looks = (GOOD if plus else BAD) if plain else (*GOOD, *BAD)  # all: they say nothing
    look = pick(rng, looks) if rng.random() < (0.5 if plain else 0.2) else ""
    be = ("are" if several else "is") + (pick(rng, (" not", " never", " hardly")) if denied else "")
    return " ".join(filter(None, ("the", look, noun, be, strong, pick(rng, GOOD if plus else BAD))))


def review(rng: np.random.Generator, good: bool) -> str:
    """Draw one opinion, or two that are joined; the main clause, or the one after "but", counts."""
    a, b, c = opinion(rng, good), opinion(rng, good), opinion(rng, not good)
    return pick(rng, (
        a, f"{a} and {b}", f"{c} but {a}", f"although {c} , {a}", f"{a} although {c}"))


OTHERS = (
    "the", "this", "these", "is", "are", "do", "does", "not", "never", "hardly", "by", "in",
    "and", "but", "although", ",", "i", "so", "again", "then", "stay",
    "leave", "same", "other",
)


def all_words() -> tuple[str, ...]:
    """Return every word of the world, in a fixed order."""
    verbs = [form for plural, forms in VERBS.items() for form in (plural, *forms)]
    words = (
        *OTHERS, *PLURAL, *PLURAL.values(), *verbs, *ADJECTIVES, *PLACES, *BESIDE,
        *THINGS, *THINGS.values(), *GOOD, *BAD, *LIKE, *DISLIKE, *STRONG,
    )
    return tuple(dict.fromkeys(words))
