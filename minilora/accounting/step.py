"""The memory and the cost of one training step, which leaves no trace in the model.

The same lines run on real arrays and on arrays without numbers (backend/shapes). So a prediction
comes from the code itself, not from formulas beside it.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Quantised, current, using
from ..backend.blocks import block, restoring
from ..backend.settings import is_plain
from ..backend.shapes import Cost, Shapes
from ..backend.shapes.array import Array
from ..backend.writes import held
from ..nn import Embedding, Module, generators
from ..ops import cross_entropy
from ..tensor import Node, Tensor, no_grad
from ..training.optim import Optimizer
from .traced import meter

WEIGHTS = ("frozen weights", "trained weights", "Adam moments")  # in memory before a step
ROWS = (*WEIGHTS[:2], "gradients", WEIGHTS[2], "activations")


@dataclass(frozen=True)
class Step:
    """The memory of a step in bytes, and its costs.

    rows   kind of memory -> bytes; activations are the arrays alive between forward and backward
    peak   the most in use at any time, weights included
    kinds  kind of op -> bytes of activations; only on arrays without numbers
    costs  of forward, backward and optimizer.step(); only on arrays without numbers
    """

    rows: dict[str, int]
    peak: int
    kinds: dict[str, int]
    costs: tuple[Cost, ...]


@block
def no_collection() -> Iterator[None]:
    """Collect no garbage in the block: arrays that earlier work left would be freed in it."""
    if not gc.isenabled():  # by the user, or by another thread that measures and enables it again
        yield
        return
    with restoring(gc.enable):
        gc.disable()
        yield


def observe(model: Module, optimizer: Optimizer, ids: np.ndarray, meter: Any) -> Step:
    """Run forward, backward and update on ids (2, batch, tokens): inputs and targets.

    For a model with one output per sequence, the first target id is the sequence's class.
    """
    costs, peaks, weights = [], [], model.parameters()
    rows = {
        "frozen weights": nbytes(p.data for p in weights if not p.requires_grad),
        "trained weights": nbytes(p.data for p in weights if p.requires_grad),
        "Adam moments": nbytes(optimizer.arrays().values()),
    }
    before, _ = meter.read()
    meter.reset()
    _, start = meter.read()
    meter.reset()  # a reading may take memory itself

    def next_phase() -> int:
        live, peak = meter.read()
        peaks.append(peak)
        costs.append(getattr(meter, "cost", Cost()))
        meter.reset()
        return int(live)

    logits = model(ids[0])
    classifies = len(logits.shape) < 3
    loss = cross_entropy(logits, ids[1, :, 0] % logits.shape[-1] if classifies else ids[1])
    del logits
    rows["activations"] = next_phase() - before
    kinds = {}
    if isinstance(current(), Shapes):
        kinds = by_kind(loss, rows["activations"], everything(model, optimizer))
    loss.backward()
    next_phase()
    optimizer.step()
    next_phase()
    rows["gradients"] = nbytes(p.grad for p in weights if p.grad is not None)
    peak = max(peaks) - start + sum(rows[name] for name in WEIGHTS)
    return Step({name: rows[name] for name in ROWS}, peak, kinds, tuple(costs))


def on_shapes(model: Module, optimizer: Optimizer, ids: np.ndarray) -> Step:
    """Observe a live model's step on arrays without numbers, which imitate the library in use."""
    like = "numpy" if current().on_host else "cupy"
    with using(f"shapes:{like}", plain=is_plain()) as library:
        counted = meter()
        counted.ignore(ids)

        def without_numbers(array: Any) -> Any:
            return library.module.empty(tuple(array.shape), str(array.dtype))

        with on_others(model, optimizer, without_numbers):
            return observe(model, optimizer, ids, counted)


def live(model: Module, optimizer: Optimizer, ids: np.ndarray) -> Step:
    """Observe the step on real arrays: on copies of those that it writes to."""
    trained = {id(p.data) for p in everything(model, optimizer) if p.requires_grad}
    trained |= {id(array) for array in optimizer.arrays().values()}

    def copied(array: Any) -> Any:
        return array.copy() if id(array) in trained else array

    with on_others(model, optimizer, copied):
        with no_grad():
            model(ids[0])  # creates cached arrays, such as erf's series: no activations
        with no_collection(), meter() as counted:
            return observe(model, optimizer, ids, counted)


@block
def on_others(
    model: Module, optimizer: Optimizer, other: Callable[[Any], Any]) -> Iterator[None]:
    """Run the block without gradients, and with the other array for each array of the parameters
    and of the optimizer. Then put back all arrays, gradients and generators."""
    parameters = [(p, p.data, p.grad) for p in everything(model, optimizer)]
    states = {name: (state, dict(state)) for name, state in optimizer.state.items()}
    draws = [(rng, rng.bit_generator.state) for rng in generators(model).values()]
    t, others = optimizer.t, dict[int, Any]()  # two parameters may share an array

    def replaced(array: Any) -> Any:
        if isinstance(array, Quantised):
            return array.on(*map(replaced, array.arrays))
        if id(array) not in others:
            others[id(array)] = other(array)
        return others[id(array)]

    def restore() -> None:
        for p, data, grad in parameters:
            p._data, p.grad = data, grad  # to set .data to what it is would count as a write
        optimizer.t = t
        optimizer.state.clear()
        for name, (state, arrays) in states.items():
            state.clear()
            state.update(arrays)
            optimizer.state[name] = state
        for rng, position in draws:
            rng.bit_generator.state = position

    with restoring(restore):
        for p, data, _ in parameters:
            p._data, p.grad = replaced(data), None
        for state, arrays in states.values():
            state.update({name: replaced(array) for name, array in arrays.items()})
        yield


def everything(model: Module, optimizer: Optimizer) -> list[Any]:
    """Return the parameters of both, each once."""
    return list(dict.fromkeys([*model.parameters(), *optimizer.parameters.values()]))


def random_ids(model: Module, batch: int, tokens: int) -> np.ndarray:
    """Return random ids (2, batch, tokens) for the first Embedding; ValueError if there is none."""
    tables = [m.W.shape[0] for _, m in model.named_modules() if isinstance(m, Embedding)]
    if not tables:
        raise ValueError(
            "accounting: the model has no Embedding: pass one that reads token ids, such as a GPT2"
        )
    return np.random.default_rng(0).integers(0, tables[0], (2, batch, tokens))


def nbytes(arrays: Iterable[Any]) -> int:
    """Return the bytes of these arrays. Arrays that share memory count once, as their owner."""
    owners = {}
    for array in arrays:
        owner = current().owner(array) if hasattr(array, "strides") else array  # or codes
        owners[id(owner)] = owner.nbytes
    return sum(owners.values())


def by_kind(loss: Tensor, total: int, parameters: Iterable[Tensor]) -> dict[str, int]:
    """Return kind of op -> bytes of the arrays in its rules' closures, each buffer once.

    Parameters do not count. "other" is the part of `total` that is not on the tape.
    """
    counted = {id(array.buffer) for p in parameters for array in held(p.data)}
    kinds = Counter[str]()
    for node in sorted(_nodes(loss), key=lambda node: node.serial):
        rules = [rule for _, rule in node.edges or ()]
        for array in held([rules, loss.data if node is loss._node else None]):
            if isinstance(array, Array) and id(array.buffer) not in counted:
                counted.add(id(array.buffer))
                kinds[node.name] += array.buffer.nbytes
    kinds["other"] = total - sum(kinds.values())
    return {kind: size for kind, size in kinds.items() if size}


def _targets(node: Node, kind: type) -> list[Any]:
    """Return the nodes (or leaves) that a node's gradients flow to."""
    every = [target for targets, _ in node.edges or () for target in targets]
    return [target for target in every if isinstance(target, kind)]


def _nodes(loss: Tensor) -> set[Node]:
    """Return all nodes of the tape below the loss."""
    nodes, todo = set[Node](), [loss._node]
    while todo:
        node = todo.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            todo += _targets(node, Node)
    return nodes
