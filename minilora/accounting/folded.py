"""The step of a deep model, from the steps of shallow ones: equal blocks cost the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ..backend.shapes import Cost
from ..backend.shapes.array import Array
from ..nn import Module
from ..tensor import Tensor
from ..training.optim import Optimizer
from .step import WEIGHTS, Step, observe

FEW = (3, 4, 5)  # equal blocks in the models that are run


def observe_folded(
    model: Module, optimizer: Callable[[Any], Optimizer], ids: np.ndarray, meter: Any
) -> Step:
    """Return what `observe` returns, to the byte, without running all blocks if many are equal.

    The longest run of equal blocks is cut to 3, 4 and 5 of them. Each block adds the same to all
    rows and costs: this is checked between the three, and the rest is added. The peak is the
    largest of many sums of memory, one for each moment of the step. With one block more, such a sum
    grows by the block's weights, and by its activations or its gradients, as the moment is before
    or after its backward pass. So no sum grows faster than with the larger of the two. If the peak
    already grows that fast, it goes on like this for any number of blocks. Otherwise all are run.

    optimizer: makes one of the trained parameters.
    """

    def step(blocks: Any) -> Step:
        model.blocks = blocks  # type: ignore[attr-defined]
        for p in model.parameters():
            p.grad = None
        return observe(model, optimizer(model.trainable_parameters()), ids, meter)

    blocks = model.blocks  # type: ignore[attr-defined]
    first, length = longest_run([signature(block) for block in blocks])
    if length > sum(FEW):
        end = first + length
        few = [step([*blocks[: first + n - 1], *blocks[end - 1 :]]) for n in FEW]
        model.blocks = blocks  # type: ignore[attr-defined]
        found = extended(few, length - FEW[0])
        if found is not None:
            return found
    return step(blocks)


def signature(value: Any) -> Any:
    """All of a module on which the cost of its ops can depend, without its name and its place."""
    if isinstance(value, Tensor):
        return type(value), value.shape, str(value.dtype), value.requires_grad
    if isinstance(value, Module):
        return type(value), signature(vars(value))
    if isinstance(value, Mapping):
        return tuple((key, signature(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(signature, value))
    if isinstance(value, Array | np.ndarray):
        return value.shape, str(value.dtype)
    return repr(value) if isinstance(value, int | float | str | np.dtype | None) else type(value)


def longest_run(values: list[Any]) -> tuple[int, int]:
    """(place of the first, length) of the longest run of equal values."""
    starts = [i for i, _ in enumerate(values) if not i or values[i] != values[i - 1]]
    bounds = list(pairwise([*starts, len(values)]))
    first, end = max(bounds, key=lambda ends: ends[1] - ends[0], default=(0, 0))
    return first, end - first


def extended(few: list[Step], more: int) -> Step | None:
    """The first of three steps with so many blocks more; None if they do not grow evenly."""
    each = [list(_numbers(step)) for step in few]
    growth = [{name: b - a for (name, a), (_, b) in zip(*both)} for both in pairwise(each)]
    own = growth[0]
    if growth[1] != own or len({tuple(name for name, _ in one) for one in each}) > 1:
        return None
    fastest = sum(own["row", name] for name in WEIGHTS) + max(
        own["row", "activations"], own["row", "gradients"])
    if own["peak", ""] != fastest:
        return None
    total = {name: value + more * own[name] for name, value in each[0]}
    return Step(
        {name: total["row", name] for name in few[0].rows}, total["peak", ""],
        {name: total["kind", name] for name in few[0].kinds},
        tuple(Cost(*(total[i, field] for field in Cost._fields))
              for i, _ in enumerate(few[0].costs)))


def _numbers(step: Step) -> Iterator[tuple[tuple[Any, str], int]]:
    """Each number of a step, by name."""
    yield from ((("row", name), value) for name, value in step.rows.items())
    yield ("peak", ""), step.peak
    yield from ((("kind", name), value) for name, value in step.kinds.items())
    for i, cost in enumerate(step.costs):
        yield from (((i, field), value) for field, value in cost._asdict().items())
