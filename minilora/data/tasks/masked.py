"""The text of the base `mini-encoder`, and batches with masked words (Devlin et al. 2019, §3.1).

The text is about the world of the tasks: grammatical sentences, reviews, and pairs of sentences.
Three kinds of words are to be predicted:

    words that are masked
    at <cls>, in place of BERT's next sentence: what the guests do after a plain review, "stay" or
    "leave"; and how some pairs are joined, by "so" (it follows) or "but" (it is denied)
    at the words of a second sentence: whether the first one says the "same", or "other"; as
    ELECTRA detects replaced words (Clark et al. 2020, arXiv 2003.10555)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import glue, world
from .task import IGNORED_WORDS, MASK, MASKED, Example, Task, Words, inputs_of
from .world import SLOTS, pick

SHARE, MARKED = 0.15, 0.6  # of the words that are masked; of the pairs that are compared


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


def same(rng: np.random.Generator, x: world.Fact) -> world.Fact:
    """Return the fact itself."""
    return x


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
        if how < 0.3:
            return Example(glue.framed(glue.grammatical(rng)), ())
        if how < 0.35:
            return Example(glue.framed(world.review(rng, bool(rng.integers(2)))), ())
        if how < 0.45:
            good = bool(rng.integers(2))
            clauses = [world.opinion(rng, good, plain=True) for _ in range(rng.integers(1, 3))]
            return Example(glue.framed(" and ".join(clauses)), ("stay" if good else "leave",))
        x = world.fact(rng)
        link = pick(rng, ("so", "but", "", "", ""))
        if link == "so":
            x, y = glue.implied(rng, True)
        elif link == "but":
            y = replace(x, negated=True)
        else:
            y = pick(rng, (same, glue.near_miss, glue.shared))(rng, x)
        y = world.reworded(rng, y)
        first, second = x.says(), y.says(bool(rng.random() < 0.1))
        answer = (link,) if link else ()
        return Example(glue.framed(first, second), answer, marks(x, y, first, second))

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        right = [(out,) == x.answer for x, out in zip(examples, outputs) if x.answer]
        return {"accuracy": float(np.mean(right))}

    def batch(self, examples: Sequence[Example]) -> tuple[Any, Any]:
        """Return ((ids, mask, types), targets), each (batch, tokens); the texts choose what is
        masked, so the same examples give the same batch.

        A target is -100 where nothing is to be predicted. Of the words that are, 80 % are replaced
        by <mask>, 10 % by a random word, and 10 % stay (Devlin et al. 2019, appendix A.1).
        """
        words, special = self.words, len(IGNORED_WORDS)
        rng = np.random.default_rng([zlib.crc32(x.inputs.encode()) for x in examples])
        ids, mask, types = inputs_of(words, [words.encode(x.inputs) for x in examples])
        chosen = (rng.random(ids.shape) < SHARE) & (ids >= special)
        marked = [x if x.facts and rng.random() < MARKED else None for x in examples]
        for row, x in zip(chosen, marked):
            if x:
                row[[*x.facts]] = False
        targets = np.where(chosen, ids, MASKED)
        for row, x, y in zip(targets, examples, marked):
            if x.answer:
                row[0] = words.ids[x.answer[0]]  # type: ignore[index]
            for i, word in y.facts.items() if y else ():
                row[i] = words.ids[word]
        how, noise = rng.random(ids.shape), rng.integers(special, words.vocab_size, ids.shape)
        ids = np.where(chosen & (how < 0.8), words.ids[MASK], ids)
        ids = np.where(chosen & (how >= 0.9), noise, ids)
        return (ids, mask, types), targets
