"""The text of the base `mini-encoder`, and batches with masked words (Devlin et al. 2019, §3.1).

The text is about the world of the tasks. It has grammatical sentences, reviews, and pairs of
sentences. Masked words are to be predicted, and at <cls> a word that the text leaves out, in place
of BERT's next sentence: what the guests did after a review (stay, smile; leave, frown), or the word
that joins a pair: again (it is the same), so (it follows), but (it is denied), then (it is
something else).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from . import glue, world
from .task import IGNORED_WORDS, MASK, MASKED, Example, Task, Words, inputs_of
from .world import LEAVE, STAY, pick

LINKS = ("again", "so", "but", "then")
SHARE = 0.15  # of the words that are to be predicted


class EncoderText(Task):
    """The mixture of texts. answer: the word to predict at <cls>, if there is one.

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
        if how < 0.2:
            return Example(glue.framed(glue.grammatical(rng)), ())
        if how < 0.55:
            good = bool(rng.integers(2))
            if rng.random() < 0.5:
                clauses = [world.opinion(rng, good, plain=True) for _ in range(rng.integers(1, 3))]
                review = " and ".join(clauses)
            else:
                review = world.review(rng, good)
            return Example(glue.framed(review), (pick(rng, STAY if good else LEAVE),))
        link, x = pick(rng, LINKS), world.fact(rng)
        if link == "so":
            x, y = glue.implied(rng, True)
        elif link == "then" and rng.random() < 0.7:
            y = glue.shared(rng, x)
        else:
            y = glue.near_miss(rng, x) if link == "then" else replace(x, negated=link == "but")
            y = world.reworded(rng, y, 0.3)
        return Example(glue.framed(x.says(), y.says(bool(rng.random() < 0.25))), (link,))

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
        targets = np.where(chosen, ids, MASKED)
        for row, x in zip(targets, examples):
            if x.answer:
                row[0] = words.ids[x.answer[0]]  # type: ignore[index]
        how, noise = rng.random(ids.shape), rng.integers(special, words.vocab_size, ids.shape)
        ids = np.where(chosen & (how < 0.8), words.ids[MASK], ids)
        ids = np.where(chosen & (how >= 0.9), noise, ids)
        return (ids, mask, types), targets
