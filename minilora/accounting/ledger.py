"""Where the bytes of training go: predicted on arrays without numbers, measured on live ones."""

from __future__ import annotations

from dataclasses import dataclass

from ..backend.threads import threads
from ..nn import Module
from ..training.optim import Optimizer
from ..words import our_words
from .step import ROWS, live, on_shapes, random_ids


@dataclass(frozen=True)
class Row:
    """One kind of memory: what shapes predict and what the arrays take, in bytes."""

    name: str
    predicted: int
    measured: int


@dataclass(frozen=True)
class Ledger:
    """The rows of `ledger`, their sums, and what the predicted activations consist of.

    peak: the most that is alive at one time in a step: weights, optimizer state, the activations so
    far, the gradients so far, and what an op needs only while it works.
    """

    rows: tuple[Row, ...]
    activations: dict[str, int]
    peak: Row

    @property
    def predicted(self) -> int:
        return sum(row.predicted for row in self.rows)

    @property
    def measured(self) -> int:
        return sum(row.measured for row in self.rows)

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """name -> {"predicted", "measured"}, "total" and "peak" included; bytes."""
        rows = [*self.rows, Row("total", self.predicted, self.measured), self.peak]
        return {row.name: {"predicted": row.predicted, "measured": row.measured} for row in rows}

    def __str__(self) -> str:
        lines = [f"{'bytes of':<16}{'predicted':>14}{'measured':>14}"]
        for name, row in self.as_dict().items():
            lines.append(f"{name:<16}{row['predicted']:>14,}{row['measured']:>14,}")
        return "\n".join(lines)


@our_words
def ledger(model: Module, optimizer: Optimizer, batch: int, tokens: int) -> Ledger:
    """The memory of one training step on `batch` sequences of `tokens`, predicted and measured.

    model: from ids (batch, tokens) to logits, with any adapters; optimizer: any. Each runs a step
    on random ids twice: on arrays without numbers, and for real, on one thread (another one has
    temporary arrays of its own). Activations are what is alive between forward and backward. On a
    device, the blocks of the memory pool are counted. Nothing of it is left: not in weights,
    gradients, optimizer, generators.
    """
    ids = random_ids(model, batch, tokens)
    expected = on_shapes(model, optimizer, ids)
    before = threads(1)
    try:
        seen = live(model, optimizer, ids)
    finally:
        threads(before)
    rows = tuple(Row(name, expected.rows[name], seen.rows[name]) for name in ROWS)
    return Ledger(rows, expected.kinds, Row("peak", expected.peak, seen.peak))
