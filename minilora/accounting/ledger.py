"""Where the bytes of training go: predicted from shapes, and measured on the live arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import current
from ..models.gpt2 import GPT2
from ..nn import generators
from ..ops import cross_entropy
from ..optim import Optimizer
from .activations import Walk


@dataclass(frozen=True)
class Row:
    """One kind of memory: what shapes predict and what the arrays take, in bytes."""

    name: str
    predicted: int
    measured: int


@dataclass(frozen=True)
class Ledger:
    """The rows of `ledger`, their sums, and what the predicted activations consist of.

    peak: the most that is alive at one time in forward and backward: weights, optimizer state, the
    activations so far, the gradients so far, and what an op needs only while it works.
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


def ledger(model: GPT2, optimizer: Optimizer, batch: int, tokens: int) -> Ledger:
    """The memory of one training step on `batch` sequences of `tokens`, predicted and measured.

    Measured by running forward and backward once on random ids, on one thread; activations are what
    is alive between the two. On a device, the blocks of the memory pool are counted. Weights and
    dropout's generators stay as they are; gradients are forgotten.
    """
    walk = Walk(model, batch, tokens)
    shapes = [(p.shape, p.data.itemsize, p.requires_grad) for p in model.parameters()]
    frozen = sum(math.prod(shape) * size for shape, size, on in shapes if not on)
    trained = sum(math.prod(shape) * size for shape, size, on in shapes if on)
    live, gradients, most = _measure(model, batch, tokens)
    moments = [a for held in optimizer.state.values() for a in held.values()]
    updated = sum(math.prod(p.shape) * p.data.itemsize for p in optimizer.parameters.values())
    weights = model.parameters()
    there = (
        Row("frozen weights", frozen, _bytes(p.data for p in weights if not p.requires_grad)),
        Row("trained weights", trained, _bytes(p.data for p in weights if p.requires_grad)),
        Row("Adam moments", len(optimizer.state_names) * updated, _bytes(moments)),
    )
    kept = Row("activations", sum(walk.kept.values()), live)
    peak = Row(
        "peak",
        sum(row.predicted for row in there) + walk.peak,
        sum(row.measured for row in there) + most,
    )
    rows = (*there[:2], Row("gradients", trained, gradients), there[2], kept)
    return Ledger(rows, dict(walk.kept), peak)


def _measure(model: GPT2, batch: int, tokens: int) -> tuple[int, int, int]:
    """(bytes alive between forward and backward, bytes of the gradients, bytes at the peak)"""
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, batch, tokens))
    states = [(g, g.bit_generator.state) for g in generators(model).values()]
    for p in model.parameters():
        p.grad = None
    try:
        with current().meter() as meter:
            before, _ = meter.read()
            meter.reset()
            _, start = meter.read()
            loss = cross_entropy(model(ids[0]), ids[1])
            after, forward = meter.read()
            meter.reset()
            loss.backward()
            peak = max(forward, meter.read()[1]) - start
    finally:
        for generator, state in states:
            generator.bit_generator.state = state
    gradients = _bytes(p.grad for p in model.parameters() if p.grad is not None)
    for p in model.parameters():
        p.grad = None
    return after - before, gradients, peak


def _bytes(arrays: Iterable[Any]) -> int:
    """Bytes of the buffers behind these arrays, each buffer once."""
    buffers = {}
    for array in arrays:
        while getattr(array, "base", None) is not None:
            array = array.base
        buffers[id(array)] = array.nbytes
    return sum(buffers.values())
