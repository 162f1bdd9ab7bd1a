"""mini-mnli, after MNLI: a premise and a hypothesis -> entailment, neutral or contradiction.

    compare a black cat sleeps in the kitchen <sep> a pet rests inside <sep>
    entailment

A word of the hypothesis may be the same, wider (cat -> pet), narrower (pet -> cat) or other
(cat -> dog). One that is other is a contradiction, else one that is narrower is neutral, else the
hypothesis follows. After "compare", the base says which words are what; after "judge", whether the
hypothesis follows: yes or no.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..words import SEP, Words
from .task import Example, Task, same
from .vocabulary import ACTIONS, ANIMALS, COLOURS, DECODER, ROOMS

LABELS = ("entailment", "neutral", "contradiction")
RELATIONS = ("same", "wider", "narrower", "other")
WIDEST = ""  # a colour that is not mentioned
KINDS: dict[str, Mapping[str, Sequence[str]]] = {
    "colour": {WIDEST: COLOURS}, "animal": ANIMALS, "action": ACTIONS, "room": ROOMS,
}


def pair(kind: str, relation: str, rng: np.random.Generator) -> tuple[str, str]:
    """Draw two words of a kind, the second in this relation to the first."""
    groups = KINDS[kind]
    general = str(rng.choice([*groups]))
    special = str(rng.choice(groups[general]))
    if relation == "same":
        return (special, special) if rng.random() < 0.7 else (general, general)
    if relation == "wider":
        return special, general
    if relation == "narrower":
        return general, special
    different = [x for g, words in groups.items() for x in ((g, *words) if g != general else words)]
    return special, str(rng.choice([x for x in different if x != special]))


def label(relations: Sequence[str]) -> str:
    """Return what follows for the whole sentence from the relations of its words."""
    if "other" in relations:
        return "contradiction"
    return "neutral" if "narrower" in relations else "entailment"


def sentence(words: Sequence[str]) -> str:
    colour, animal, action, room = words
    where = room if room in ROOMS else f"in the {room}"
    return " ".join(f"a {colour} {animal} {action} {where}".split())


def pairs(rng: np.random.Generator, wanted: str | None = None) -> tuple[str, dict[str, str]]:
    """Draw an input, with the wanted label, and the relation of each kind of word."""
    known = RELATIONS[: LABELS.index(wanted) + 2] if wanted else RELATIONS
    relations: list[str] = []
    while not relations or wanted not in (None, label(relations)):
        relations = rng.choice(known, len(KINDS)).tolist()
    words = [pair(kind, relation, rng) for kind, relation in zip(KINDS, relations)]
    premise, hypothesis = (sentence(side) for side in zip(*words))
    return f"compare {premise} {SEP} {hypothesis} {SEP}", dict(zip(KINDS, relations))


def base_example(rng: np.random.Generator) -> Example:
    """Draw an example of the base: the relation of each kind of word, or yes, if it follows."""
    if rng.random() < 0.3:
        follows = rng.random() < 0.5
        inputs, _ = pairs(rng, LABELS[0] if follows else str(rng.choice(LABELS[1:])))
        return Example(inputs.replace("compare", "judge"), ("yes" if follows else "no",))
    inputs, relations = pairs(rng)
    return Example(inputs, (" ".join(f"{kind} {what}" for kind, what in relations.items()),))


class MNLI(Task):
    """One word: the label. The three are equally likely. An output that is no label is wrong."""

    name = "mini-mnli"
    stands_for = "MNLI"
    base = "mini-decoder"
    metrics = ("accuracy",)
    longest = 2

    @property
    def words(self) -> Words:
        return DECODER

    def draw(self, rng: np.random.Generator) -> Example:
        inputs, relations = pairs(rng, str(rng.choice(LABELS)))
        return Example(inputs, (label([*relations.values()]),))

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        return {"accuracy": float(np.mean(same(examples, outputs)))}
