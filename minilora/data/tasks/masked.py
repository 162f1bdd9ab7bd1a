"""The text of the base `mini-encoder`, and batches with masked words (Devlin et al. 2019, §3.1).

The text is about the world of the tasks: grammatical sentences, reviews, and pairs of sentences.
Three kinds of words are to be predicted:

    words that are masked
    at <cls>, in place of BERT's next sentence: what the guests do after a review, "stay" or
    "leave"; and what joins a pair, "so" (it follows), "but" (it is denied), "again" or "then"
    at words that are there: whether they fit, "same" or "other", in their sentence or as a word of
    the second that the first has too; as ELECTRA detects words that were replaced (Clark et al.
    2020, arXiv 2003.10555)

Few of the hard texts tell the word at <cls>: what the tasks ask for is there, but not at <cls>.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...ops.neural import IGNORED
from ..words import MASK, SPECIAL, Words
from . import glue, world
from .task import Example, Task, inputs_of
from .world import SLOTS, pick

SHARE = 0.15  # of the words that are masked
MARKED = 0.6  # of the texts with marks whose marks are to be predicted
TOLD = 0.3  # of the hard texts that have a word to predict at <cls>


def marks(x: world.Fact, y: world.Fact, first: str, second: str) -> dict[int, str]:
    """Return the place of each word of the second fact -> whether the first says the same."""
    words, n = second.split(), len(first.split()) + 2
    result = {}
    for slot in SLOTS:
        word = y.word(slot)
        forms = (word, world.PLURAL.get(word), *world.VERBS.get(word, ()))
        for i in [i for i, one in enumerate(words) if word and one in forms]:
            result[n + i] = "same" if glue.likeness(x.word(slot), word) == 1 else "other"
    return result


def sentence(rng: np.random.Generator) -> Example:
    """Draw a grammatical sentence, or one with a mistake and marks where it is."""
    text = glue.grammatical(rng)
    if rng.random() < 0.4:
        return Example(glue.framed(text), ())
    text, wrong = glue.spoiled(rng, text) if rng.integers(2) else (text, [])
    checked = [i for i, word in enumerate(text.split()) if word in glue.OTHER_NUMBER]
    facts = {i + 1: "other" if i in wrong else "same" for i in {*checked, *wrong}}
    return Example(glue.framed(text), (), facts)


def pair(rng: np.random.Generator) -> Example:
    """Draw two sentences, the word that joins them, and the marks of the second one."""
    x = world.fact(rng)
    link = pick(rng, ("so", "but", "again", "then", "then"))
    y = replace(x, negated=link == "but")
    if link == "so":
        x, y = glue.implied(rng, True)
    elif link == "then":
        y = pick(rng, (glue.near_miss, glue.shared))(rng, x)
    y = world.reworded(rng, y)
    first, second = x.says(), y.says(bool(rng.random() < 0.1))
    known = link in ("so", "but") or rng.random() < TOLD
    return Example(
        glue.framed(first, second), (link,) if known else (), marks(x, y, first, second))


class EncoderText(Task):
    """The mixture of texts.

    answer: the word to predict at <cls>, if there is one.   facts: place -> "same" or "other"

    A text is in the same part here as in a task, so the base has never been trained on an input of
    a task's test part.
    """

    name = "mini-encoder"
    stands_for = "the text of BERT"
    base = "mini-encoder"
    metrics = ("accuracy",)

    @property
    def words(self) -> Words:
        return glue.WORDS

    def draw(self, rng: np.random.Generator) -> Example:
        how = rng.random()
        if how < 0.35:
            return sentence(rng)
        if how < 0.5:
            good, plain = bool(rng.integers(2)), bool(rng.random() < 0.6)
            clauses = [world.opinion(rng, good, plain=True) for _ in range(rng.integers(1, 3))]
            review = " and ".join(clauses) if plain else world.review(rng, good)
            known = plain or rng.random() < TOLD
            return Example(glue.framed(review), ("stay" if good else "leave",) if known else ())
        return pair(rng)

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        right = [(out,) == x.answer for x, out in zip(examples, outputs) if x.answer]
        return {"accuracy": float(np.mean(right))}

    def batch(self, examples: Sequence[Example]) -> tuple[Any, Any]:
        """Return ((ids, mask, types), targets), each (batch, tokens); the texts choose what is
        masked, so the same examples give the same batch.

        A target is -100 where nothing is to be predicted. Of the words that are, 80 % are replaced
        by <mask>, 10 % by a random word, and 10 % stay (Devlin et al. 2019, appendix A.1).
        """
        words, special = self.words, len(SPECIAL)
        rng = np.random.default_rng([zlib.crc32(x.inputs.encode()) for x in examples])
        ids, mask, types = inputs_of(words, [words.encode(x.inputs) for x in examples])
        chosen = (rng.random(ids.shape) < SHARE) & (ids >= special)
        marked = [x if x.facts and rng.random() < MARKED else None for x in examples]
        for row, x in zip(chosen, marked):
            if x:
                row[:] = False
        targets = np.where(chosen, ids, IGNORED)
        for row, x, y in zip(targets, examples, marked):
            if x.answer:
                row[0] = words.ids[x.answer[0]]  # type: ignore[index]
            for i, word in y.facts.items() if y else ():
                row[i] = words.ids[word]
        how, noise = rng.random(ids.shape), rng.integers(special, words.vocab_size, ids.shape)
        ids = np.where(chosen & (how < 0.8), words.ids[MASK], ids)
        ids = np.where(chosen & (how >= 0.9), noise, ids)
        return (ids, mask, types), targets
