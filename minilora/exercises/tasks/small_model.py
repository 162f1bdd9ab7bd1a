"""The small model of exercise 13, as the judge's process has it, and as the student's has it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np

import minilora as ml

WORDS, LENGTH, SIZE, WIDTH, LR = 6, 8, 8, 16, 0.03
NAMES = ("q", "k", "v", "o")  # the layers that get an adapter
Copies = list[tuple[Any, np.ndarray]]  # parameters, each with a copy of its numbers


@functools.lru_cache(2)
def model(seed: int) -> ml.GPT2:
    """Return the model, in the judge's process. Dropout is off."""
    model = ml.GPT2(ml.GPT2Config(WORDS, LENGTH, WIDTH, 2, 2), rng=seed)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        p.data *= 20 if name in ("tok.W", "pos.W") else 1
        p.data += rng.normal(0, 0.1 * name.endswith(".b"), p.shape).astype("float32")
    return model


def text(seed: int, times: int) -> np.ndarray:
    """Return token ids: all words in one order, so many times."""
    return np.tile(np.random.default_rng(seed).permutation(WORDS), times)


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the logits of a model of either process for the first ids."""
    return np.array(model(ids[None, :LENGTH]).data)


def losses_of(z: np.ndarray, window: np.ndarray) -> list[float]:
    """Return the loss of each token of a window after the first, from the logits."""
    z = z[0].astype("float64")
    return [*(np.log(np.exp(z).sum(axis=-1)) - z[np.arange(len(z)), window[1:]])]


class Theirs:
    """The same model in the student's process, with copies of its parameters."""

    def __init__(self, file: Any, seed: int, dropout: float = 0.0) -> None:
        self.file, self.engine = file, file.imported("minilora")
        settings = self.engine.GPT2Config(WORDS, LENGTH, WIDTH, 2, 2, dropout=dropout)
        self.model = self.engine.GPT2(settings, rng=seed)
        self.model.load_state_dict(model(seed).state_dict())
        self.base, self.new = self._copies(self.model.parameters()), Copies()

    def _data(self, parameters: Iterable[Any]) -> list[np.ndarray]:
        data: list[np.ndarray] = self.file.each([*parameters], "data")
        return data

    def _copies(self, parameters: Sequence[Any]) -> Copies:
        return [(p, data.copy()) for p, data in zip(parameters, self._data(parameters))]

    def prepare(self, seed: int, r: int, alpha: float, B: float = 0.0) -> Self:
        """Let the script put adapters into the model; B: the size of their numbers, if not 0."""
        rng = np.random.default_rng(seed)
        self.optimizer = self.file.prepare(self.model, r, alpha, LR, rng)
        new = [p for p in self.model.parameters() if not any(p is old for old, _ in self.base)]
        for data in self._data(new) if B else []:
            data[...] = B * rng.normal(size=data.shape)
        self.new = self._copies(new)
        return self

    def numbers(self) -> list[np.ndarray]:
        """Return the numbers of each parameter that the model has now."""
        return self._data(self.model.parameters())

    def intact(self) -> bool:
        """Has the base kept its bits?"""
        now = self._data(p for p, _ in self.base)
        return all((data == before).all() for data, (_, before) in zip(now, self.base))

    def changes(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield for each new parameter its copy, and its numbers now."""
        return zip((before for _, before in self.new), self._data(p for p, _ in self.new))

    def still(self) -> Any:
        """Return an optimizer that changes nothing, and records gradients and learning rates."""
        optimizer = self.engine.SGD(self.model.trainable_parameters(), lr=LR)
        parameters = [*optimizer.parameters.values()]
        self.seen: list[list[np.ndarray]] = []
        self.rates: list[float] = []

        def step() -> None:
            grads = self.file.each(parameters, "grad")
            self.seen.append([np.array(grad) for grad in grads if grad is not None])
            self.rates.append(optimizer.lr)

        optimizer.step = step
        return optimizer

    def watched(self) -> Self:
        """Record of each later call of the model: the tokens, where it is in training mode, and
        its parameters at the first call with more than one row."""
        forward, model = self.model.forward, self.model
        places = {"the model": model, "the embeddings": model.drop}
        for i, block in enumerate(model.blocks):
            places |= {f"blocks[{i}]": block, f"blocks[{i}].drop": block.drop}
        self.read: list[np.ndarray] = []
        self.modes: list[dict[str, bool]] = []
        self.first: list[np.ndarray] = []

        def recorded(ids: np.ndarray) -> Any:
            self.read.append(np.array(ids))
            self.modes.append(dict(zip(places, self.file.each([*places.values()], "training"))))
            if len(ids) > 1 and not self.first:
                self.first = [data.copy() for data in self.numbers()]
            return forward(ids)

        self.model.forward = recorded
        return self

    def start_like(self, other: Self) -> Self:
        """Give the parameters the numbers that those of another model had at its first batch."""
        for data, first in zip(self.numbers(), other.first):
            data[...] = first
        return self
