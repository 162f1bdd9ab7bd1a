"""Mini-GLUE: five small tasks for an encoder, after GLUE (Wang et al. 2018, arXiv 1804.07461).

    mini-cola   is the sentence grammatical?              Matthews correlation
    mini-sst    does the review praise?                   accuracy
    mini-mrpc   do two sentences say the same?            accuracy, F1
    mini-stsb   how much do they share, 0 to 5?           Pearson and Spearman correlation
    mini-rte    does the second follow from the first?    accuracy

Inputs are "<cls> a b c <sep>" or "<cls> a b c <sep> d e f <sep>".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ..metrics.classes import accuracy, f1, matthews, pearson, spearman
from ..words import CLS, SEP, Words
from . import world
from .task import Example, Task
from .world import BESIDE, KIND, NOUNS, PLURAL, SLOTS, SYNONYM, VERBS, Fact, pick

WORDS = Words(world.all_words())
SCORES = {"accuracy": accuracy, "f1": f1, "matthews": matthews, "pearson": pearson,
          "spearman": spearman}


def framed(*sentences: str) -> str:
    """Return "<cls> a b c <sep> d e f <sep>"."""
    return f"{CLS} " + " ".join(f"{sentence} {SEP}" for sentence in sentences)


class GlueTask(Task):
    """A task of the encoder; its answers are classes, or numbers if labels is 1."""

    base = "mini-encoder"
    labels = 2
    words: ClassVar[Words] = WORDS

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        answers = np.array([x.answer for x in examples])
        return {name: SCORES[name](answers, np.asarray(outputs)) for name in self.metrics}


class MiniCola(GlueTask):
    """Acceptability: 1 for a grammatical sentence, 0 for one with a single mistake.

    Nouns between the subject and the verb attract a wrong agreement, as in "the dog near the cars
    see"; others have a wrong form after do, does, is and are, a wrong determiner, or two
    neighbours in the wrong order.
    """

    name = "mini-cola"
    stands_for = "CoLA"
    metrics = ("matthews", "accuracy")
    steps = 300

    def draw(self, rng: np.random.Generator) -> Example:
        sentence, wrong = grammatical(rng), bool(rng.integers(2))
        return Example(framed(spoiled(rng, sentence)[0] if wrong else sentence), int(not wrong))


def attractor(rng: np.random.Generator) -> str:
    """Draw words that stand between a subject and its verb."""
    noun = pick(rng, NOUNS)
    noun = PLURAL[noun] if rng.integers(2) else noun
    return f"{pick(rng, BESIDE)} the {noun}"


def grammatical(rng: np.random.Generator) -> str:
    """Draw a grammatical sentence: a fact with a subject that may be followed by more words."""
    x = world.fact(rng, adjective=0.4, place=0.3, negated=0.3, several=0.5)
    between = "".join(f" {attractor(rng)}" for _ in range(int(rng.integers(3))))
    words = x.says(bool(rng.random() < 0.3), between.strip()).split()
    if rng.random() < 0.5:  # this dog, these dogs
        last = next(i for i, word in enumerate(words) if word in NUMBER)
        words[0] = "these" if NUMBER[words[last]] else "this"
    return " ".join(words)


NUMBER = {word: several for one, many in PLURAL.items() for word, several in
          ((one, False), (many, True))}  # noun -> whether it is a plural
OTHER_NUMBER = {"is": "are", "are": "is", "do": "does", "does": "do", "this": "these",
                "these": "this"} | {a: b for one, (many, _) in VERBS.items()
                                    for a, b in ((one, many), (many, one))}


def spoiled(rng: np.random.Generator, sentence: str) -> tuple[str, list[int]]:
    """Return the sentence with one mistake, and the places of the words that are wrong."""
    words = sentence.split()
    if rng.random() < 0.75:
        i = pick(rng, [i for i, word in enumerate(words) if word in OTHER_NUMBER])
        words[i] = OTHER_NUMBER[words[i]]
        return " ".join(words), [i]
    i = pick(rng, [i for i in range(len(words) - 1) if words[i] in ("the", "in", "by", "not")])
    words[i : i + 2] = words[i + 1], words[i]
    return " ".join(words), [i, i + 1]


class MiniSst(GlueTask):
    """Sentiment: 1 if a review praises, 0 if it does not.

    A negation turns a clause around; of two clauses the main one counts, or the one after "but".
    """

    name = "mini-sst"
    stands_for = "SST-2"
    metrics = ("accuracy",)

    def draw(self, rng: np.random.Generator) -> Example:
        good = bool(rng.integers(2))
        return Example(framed(world.review(rng, good)), int(good))


def near_miss(rng: np.random.Generator, x: Fact) -> Fact:
    """Return a fact that differs in the meaning of one word."""
    slot = pick(rng, tuple(SLOTS))
    return x.but({slot: world.other(rng, SLOTS[slot], x.word(slot))})


class MiniMrpc(GlueTask):
    """Paraphrase: 1 if two sentences say the same, 0 if one word has another meaning.

    The second may have synonyms, and may be in the passive voice.
    """

    name = "mini-mrpc"
    stands_for = "MRPC"
    metrics = ("accuracy", "f1")
    steps = 300

    def draw(self, rng: np.random.Generator) -> Example:
        x, same = world.fact(rng), bool(rng.integers(2))
        y = world.reworded(rng, x if same else near_miss(rng, x))
        return Example(framed(x.says(), y.says(passive=bool(rng.integers(2)))), int(same))


def likeness(a: str, b: str) -> float:
    """Return 1 for words that mean the same, 0.5 for two nouns of one kind, else 0."""
    if b in (a, SYNONYM.get(a)):
        return 1.0
    return 0.5 if a in KIND and KIND[a] == KIND.get(b) else 0.0


def shared(rng: np.random.Generator, x: Fact) -> Fact:
    """Return a fact that shares some words with another, any number of them, or synonyms."""
    share = rng.random()
    kept = {slot: x.word(slot) for slot in SLOTS if rng.random() < share}
    return world.reworded(rng, world.fact(rng).but(kept))


class MiniStsb(GlueTask):
    """Similarity, a number from 0 to 5: the five words of two facts, compared one by one.

    Words that mean the same count 1, nouns of one kind 0.5.
    """

    name = "mini-stsb"
    stands_for = "STS-B"
    metrics = ("pearson", "spearman")
    labels = 1

    def draw(self, rng: np.random.Generator) -> Example:
        x = world.fact(rng)
        y = shared(rng, x)
        value = sum(likeness(x.word(slot), y.word(slot)) for slot in SLOTS)
        return Example(framed(x.says(), y.says()), float(value))

    def batch(self, examples: Sequence[Example]) -> tuple[Any, Any]:
        """Return (inputs, targets); a target is the number less 2.5, so that a new head, which
        predicts about 0, begins in the middle. A correlation does not change by it.
        """
        inputs, targets = super().batch(examples)
        return inputs, targets - np.float32(2.5)


class MiniRte(GlueTask):
    """Inference: 1 if the second sentence follows from the first, 0 if it does not.

    It follows if it says the same in other words, or less: the word for the kind instead of the
    noun, no adjective, no place. It does not if it says more, denies, or says something else.
    """

    name = "mini-rte"
    stands_for = "RTE"
    metrics = ("accuracy",)

    def draw(self, rng: np.random.Generator) -> Example:
        follows = bool(rng.integers(2))
        x, y = implied(rng, follows)
        return Example(framed(x.says(), y.says(bool(rng.random() < 0.3))), int(follows))


def implied(rng: np.random.Generator, follows: bool) -> tuple[Fact, Fact]:
    """Draw two facts of which the second follows from the first, or does not."""
    x = world.fact(rng)
    y = x.but({slot: "" for slot in ("adjective", "place") if rng.random() < 0.5})
    for slot in ("agent", "patient"):
        if rng.random() < 0.4:
            y = y.but({slot: KIND[y.word(slot)]})
    y = world.reworded(rng, y, 0.3)
    if follows:
        return x, y
    how = pick(rng, ("denied", "more", "word"))
    if how == "denied":
        return x, replace(y, negated=True)
    if how == "more" and (bool(x.adjective), bool(x.place)) != (bool(y.adjective), bool(y.place)):
        return y, x
    slot = pick(rng, ("agent", "verb", "patient"))
    kind = KIND.get(x.word(slot))
    far = tuple(word for word in SLOTS[slot] if kind is None or KIND[word] != kind)
    return x, y.but({slot: world.other(rng, far, x.word(slot))})
