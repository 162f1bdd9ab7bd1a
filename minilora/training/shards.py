"""A step in shards: the same gradient, bit for bit, however many ranks compute it.

A batch is cut into a fixed number of parts, the shards. Rank k computes shards k, k + size, ... and
puts the gradients of each into a row. All ranks gather the rows of all shards, and add them up
pairwise in one order. Dropout draws from a generator of the shard, not of the rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend import asarray, asnumpy
from ..backend.blocks import block, restoring
from ..nn import Module, Parameter, generators
from .loss_scale import LossScale
from .optim import Optimizer
from .ranks import Group

SHARDS = 8  # of a batch, if a step has one


def count(group: Group, batches: int) -> int:
    """Return how many shards each of the batches of a step is cut into, if it has so many rows."""
    return group.shards or (SHARDS if batches == 1 else 1)


def settings(group: Group, batches: Sequence[Any]) -> dict[str, Any]:
    """Return what may change a bit of a run, for the batches of its first step.

    Raises ValueError if there are more ranks than shards: some would do nothing.
    """
    if group.size > (shards := len(cut(batches, group))):
        raise ValueError(
            f"fit: {group.size} ranks for {shards} shards in a step, so some would do nothing: use "
            f"at most {shards} ranks, or larger batches and as many shards as ranks"
        )
    return {"shards": count(group, len(batches)), "reduce": "exact" if group.exact else "fast"}


def cut(batches: Sequence[Any], group: Group) -> list[Any]:
    """Return the shards of a step: each batch in parts of neighbouring rows, of about one size."""
    shards = []
    for batch in batches:
        if (n := count(group, len(batches))) == 1:
            shards.append(batch)
            continue
        size = len(batch[1])
        bounds = [size * i // min(n, size) for i in range(min(n, size) + 1)]
        shards += [tuple(_rows(x, slice(a, b), size) for x in batch)
                   for a, b in pairwise(bounds)]
    return shards


def _rows(x: Any, at: slice, size: int) -> Any:
    """Return these rows of what a batch has: an array, None, or a tuple of them."""
    if x is None or isinstance(x, tuple):
        return None if x is None else tuple(_rows(item, at, size) for item in x)
    x = x if hasattr(x, "shape") else np.asarray(x)
    if x.shape[:1] != (size,):
        raise ValueError(
            f"train_step: an array {tuple(x.shape)} beside {size} targets cannot be cut into "
            "shards: give each array of a batch one row for each target, or use shards=1 and "
            "accumulation_steps"
        )
    return x[at]


def length(parameters: Mapping[str, Parameter]) -> int:
    """Return how many numbers a row has: gradients, a flag for each parameter, and two more."""
    return sum(p.size for p in parameters.values()) + len(parameters) + 2


def summed(
    group: Group, model: Module, optimizer: Optimizer, loss_scale: LossScale | None,
    shards: Sequence[Callable[[], Any] | None],
) -> Any:
    """Set the gradients of the optimizer's parameters to their sum over all shards. Return the sum
    of the losses, an array ().

    shards: functions that add a shard's gradients to those there are and return its loss; None: a
    shard without targets. Each rank calls its own alone.

    Raises FloatingPointError on every rank if a gradient is not finite on one.
    """
    parameters, own = optimizer.parameters, range(group.rank, len(shards), group.size)
    dtype = np.result_type("f4", *(str(p.dtype) for p in parameters.values()))
    each = -(-len(shards) // group.size) if group.exact else 1
    rows, failed = np.zeros((each, length(parameters)), dtype), None
    with drawing(model) as draw_for:
        for i, shard in enumerate(own):
            optimizer.zero_grad()
            draw_for(shard)
            try:
                loss = compute() if (compute := shards[shard]) else 0.0
            except FloatingPointError as error:  # the other ranks wait: they must learn of it
                failed = error
                break
            finite = not loss_scale or bool(asnumpy(loss_scale.finite))
            _add(rows[i % each], parameters, float(asnumpy(loss)), finite)
    group.sent = rows.nbytes if group.size > 1 else 0
    if group.exact:
        every = group.gather(rows)  # (size, each, numbers)
        row = added([every[i % group.size, i // group.size] for i in range(len(shards))])
    else:
        group.add(row := rows[0])
    if row[-1] != len(shards):
        if not loss_scale:
            raise failed or FloatingPointError(
                "train_step: a gradient is not finite in a shard of another rank")
        loss_scale.finite = asarray(np.array(False))
    at, flags = 0, row[-len(parameters) - 2 :]
    for p, flag in zip(parameters.values(), flags):
        p.grad = asarray(row[at : at + p.size].reshape(p.shape)) if flag else None
        at += p.size
    return asarray(row[-2:-1].reshape(()))


def _add(row: np.ndarray, parameters: Mapping[str, Parameter], loss: float, finite: bool) -> None:
    """Add a shard's gradients to the row, then 1 for each parameter that has one, its loss, and 1
    if all is finite."""
    at, flags = 0, row[-len(parameters) - 2 :]
    for i, p in enumerate(parameters.values()):
        if p.grad is not None and finite:
            row[at : at + p.size] += asnumpy(p.grad).reshape(-1)
        flags[i] += p.grad is not None
        at += p.size
    row[-2:] += loss, finite


def added(rows: list[np.ndarray]) -> np.ndarray:
    """Return the sum of the rows, neighbours first: ((0 + 1) + (2 + 3)) + ..."""
    while len(rows) > 1:
        rows = [a + b for a, b in zip(rows[::2], rows[1::2])] + rows[len(rows) // 2 * 2 :]
    return rows[0]


@block
def drawing(model: Module) -> Iterator[Callable[[int], None]]:
    """Yield a function, shard -> None: let the model's dropout draw this shard's random numbers.

    Each generator of the model draws one seed a step, on all ranks alike; a shard's generator is of
    the same kind, from this seed and the number of the shard.
    """
    rngs = {id(rng): rng for rng in generators(model).values()}.values()
    seeds = [rng.integers(0, 2**63, 2).tolist() for rng in rngs]
    after = [rng.bit_generator.state for rng in rngs]

    def start(shard: int) -> None:
        for rng, seed in zip(rngs, seeds):
            kind: Any = type(rng.bit_generator)
            rng.bit_generator.state = kind(np.random.SeedSequence([*seed, shard])).state

    def restore() -> None:
        for rng, state in zip(rngs, after):
            rng.bit_generator.state = state

    with restoring(restore):
        yield start
