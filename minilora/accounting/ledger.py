"""The memory of one training step: predicted on arrays without numbers, measured on real ones."""

from __future__ import annotations

from dataclasses import dataclass

from ..backend.blocks import restoring
from ..backend.threads import threads
from ..nn import Module
from ..training.optim import Optimizer
from ..words import our_words
from .step import ROWS, live, on_shapes, random_ids


@dataclass(frozen=True)
class Row:
    """One kind of memory, in bytes: predicted on shapes, and measured."""

    name: str
    predicted: int
    measured: int


@dataclass(frozen=True)
class Ledger:
    """The result of `ledger`, in bytes.

    rows         one for each kind of memory
    activations  kind of op -> predicted bytes
    peak         the most memory in use at one time: weights, optimizer state, activations and
                 gradients so far, and an op's temporary arrays
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
        """Return name -> {"predicted", "measured"} in bytes, with "total" and "peak"."""
        rows = [*self.rows, Row("total", self.predicted, self.measured), self.peak]
        return {row.name: {"predicted": row.predicted, "measured": row.measured} for row in rows}

    def __str__(self) -> str:
        lines = [f"{'bytes of':<16}{'predicted':>14}{'measured':>14}"]
        for name, row in self.as_dict().items():
            lines.append(f"{name:<16}{row['predicted']:>14,}{row['measured']:>14,}")
        return "\n".join(lines)


@our_words
def ledger(model: Module, optimizer: Optimizer, batch: int, tokens: int) -> Ledger:
    """Predict and measure the memory of one training step on `batch` sequences of `tokens`.

    model      ids (batch, tokens) -> logits, with or without adapters
    optimizer  any

    The step runs twice on random ids: on arrays without numbers, and on the real arrays. The real
    step uses one thread, because each thread has temporary arrays of its own. Activations are the
    arrays alive between forward and backward. On a device, the blocks of the memory pool are
    counted. Afterwards weights, gradients, optimizer and generators are as before. No other thread
    may use the model meanwhile; `plan` has a model of its own.
    """
    ids = random_ids(model, batch, tokens)
    expected = on_shapes(model, optimizer, ids)
    before = threads()
    with restoring(lambda: threads(before)):
        threads(1)
        seen = live(model, optimizer, ids)
    rows = tuple(Row(name, expected.rows[name], seen.rows[name]) for name in ROWS)
    return Ledger(rows, expected.kinds, Row("peak", expected.peak, seen.peak))
