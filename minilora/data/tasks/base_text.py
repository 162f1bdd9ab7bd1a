"""The texts that the bases of the tasks are pretrained on, as batches.

    base_batches("mini-decoder", "test")     batches of held-out text: the loss on them rises where
                                             a model forgets what the base knew
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...checks import choice
from ..words import SEP, SPECIAL, Words
from . import e2e, mnli, samsum, sql
from .masked import EncoderText
from .task import Example, Task, same
from .vocabulary import DECODER

Batch = tuple[Any, Any]


def echo(rng: np.random.Generator) -> Example:
    """Draw two words to be repeated: so the base knows every word, if not how tasks use it."""
    pair = " ".join(rng.choice(DECODER.words[len(SPECIAL) :], 2))
    return Example(f"say {pair} {SEP}", (pair,))


SHARES: dict[Callable[[np.random.Generator], Example], float] = {
    e2e.base_example: 0.2, sql.base_example: 0.2, mnli.base_example: 0.34,
    samsum.base_example: 0.18, echo: 0.08,
}


class DecoderText(Task):
    """A mixture of the worlds of all decoder tasks, in other forms than the tasks ask for.

    Only answers are targets, as in the tasks: inputs are drawn at random, and there is nothing to
    learn about their words. An input is in the same part here as in a task, so the base has never
    been trained on an input of a task's test part.
    """

    name = "mini-decoder"
    stands_for = "the text of GPT-2"
    base = "mini-decoder"
    metrics = ("exact",)
    longest = 40

    @property
    def words(self) -> Words:
        return DECODER

    def draw(self, rng: np.random.Generator) -> Example:
        draw = [*SHARES][rng.choice(len(SHARES), p=[*SHARES.values()])]
        return draw(rng)

    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        return {"exact": float(np.mean(same(examples, outputs)))}


class Stream:
    """Batches that are drawn when they are asked for: stream[i] is the same each time."""

    def __init__(self, text: Task, batch: int, seed: int) -> None:
        self.text, self.batch, self.seed = text, batch, seed

    def __getitem__(self, i: int) -> Batch:
        return self.text.batch(self.text.examples("train", self.batch, seed=[self.seed, i]))


BASE_TEXTS: dict[str, Task] = {"mini-decoder": DecoderText(), "mini-encoder": EncoderText()}


def base_batches(name: str, part: str = "test", n: int = 8, batch: int = 64) -> list[Batch]:
    """Return n batches of a base's own text, the same at each call."""
    choice("base_batches", "name", name, [*BASE_TEXTS])
    text = BASE_TEXTS[name]
    examples = text.examples(part, n * batch)
    return [text.batch(examples[i : i + batch]) for i in range(0, len(examples), batch)]
