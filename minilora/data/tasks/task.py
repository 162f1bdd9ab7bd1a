"""What a task is: examples drawn from a seed, batches of token ids, and scores."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ...checks import choice, integer
from ...ops.neural import IGNORED
from ..metrics.texts import need
from ..padding import padded
from ..words import END, PAD, SEP, Words

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """inputs: what the model reads, words separated by spaces (two sentences: <sep> between them).

    answer: for a decoder the references, of which the first is trained on; for an encoder a class,
    or a number to predict. facts: what a score needs besides, such as the table of a question.
    """

    inputs: str
    answer: tuple[str, ...] | int | float
    facts: Any = None


class Task(ABC):
    """A task. An example belongs to the part that its input's checksum says, so no input is in two.

    stands_for   the data set of the paper
    base         the built-in base that is adapted to it
    metrics      the names of the scores; the first is the main one
    labels       encoder: the number of classes, 1 for a number to predict; 0 for a decoder
    longest      decoder: the most tokens that an answer has, <end> included
    needs        modules of optional libraries that its scores need
    steps        training steps of one run, with `batch_size` examples in a step
    """

    name: ClassVar[str]
    stands_for: ClassVar[str]
    base: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    labels: ClassVar[int] = 0
    longest: ClassVar[int] = 0
    needs: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int] = 200
    batch_size: ClassVar[int] = 32
    sizes: ClassVar[Mapping[str, int]] = {"train": 2000, "validation": 200, "test": 400}

    @property
    @abstractmethod
    def words(self) -> Words:
        """The words of the base."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Example:
        """Draw one example."""

    @abstractmethod
    def score(self, examples: Sequence[Example], outputs: Sequence[Any]) -> dict[str, float]:
        """Return each metric; outputs: texts of a decoder, classes or numbers of an encoder."""

    def ready(self) -> None:
        """Raise ImportError, with the command to install it, if a library is missing."""
        for module in self.needs:
            need(module)

    def examples(
        self, part: str, n: int | None = None, seed: int | Sequence[int] = 0
    ) -> list[Example]:
        """Return the first n examples of a part, all with different inputs."""
        choice("examples", "part", part, PARTS)
        n = self.sizes[part] if n is None else integer("examples", "n", n, 1)
        result: dict[str, Example] = {}
        for example in self._stream(part, seed):
            if result.setdefault(example.inputs, example) is example and len(result) == n:
                return list(result.values())
        raise ValueError(
            f"{self.name}: there are only {len(result)} different inputs for {part!r}, not {n}"
        )

    def _stream(self, part: str, seed: int | Sequence[int]) -> Iterator[Example]:
        """Draw examples of one part: 1 in 8 belongs to "test", 1 in 8 to "validation"."""
        rng = np.random.default_rng([*np.atleast_1d(seed), zlib.crc32(self.name.encode())])
        for _ in range(100_000):
            example = self.draw(rng)
            at = zlib.crc32(example.inputs.encode()) % 8
            if PARTS[{0: 2, 1: 1}.get(at, 0)] == part:
                yield example

    def batch(self, examples: Sequence[Example]) -> tuple[Any, Any]:
        """Return (inputs, targets) for a model, padded on the right.

        Decoder: ids and targets (batch, tokens); only the answer and its <end> are targets.
        Encoder: ((ids, mask, types), labels); types are 1 after the first <sep>.
        """
        texts = [self.words.encode(x.inputs) for x in examples]
        if self.labels:
            kind = np.int64 if self.labels > 1 else np.float32
            return inputs_of(self.words, texts), np.array([x.answer for x in examples], kind)
        answers = [self.words.encode(f"{x.answer[0]} {END}") for x in examples]  # type: ignore[index]
        ids, _ = padded([a + b for a, b in zip(texts, answers)], self.words.ids[PAD])
        targets = np.full_like(ids, IGNORED)
        for row, text, answer in zip(targets, texts, answers):
            row[len(text) : len(text) + len(answer)] = answer
        return ids[:, :-1], targets[:, 1:]


def same(examples: Sequence[Example], outputs: Sequence[Any]) -> list[bool]:
    """Return for each text whether it is the first reference, word for word."""
    return [out == x.answer[0] for x, out in zip(examples, outputs)]  # type: ignore[index]


def inputs_of(words: Words, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
    """Return (ids, mask, types) of an encoder, each (batch, tokens).

    mask: 1 for a token, 0 for padding.   types: 1 after the first <sep>, else 0.
    """
    ids, given = padded(rows, words.ids[PAD])
    ends = ids == words.ids[SEP]
    types = (np.cumsum(ends, axis=1) - ends > 0) & given
    return ids, given.astype(np.int64), types.astype(np.int64)
