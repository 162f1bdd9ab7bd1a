"""One training step under observation: forward, backward, optimizer; and then as if it never was.

The same few lines run on live arrays and on arrays without numbers (backend/shapes), so that what
is predicted is what the code does, not what somebody wrote down about it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np

from ..backend import current, using
from ..backend.settings import is_plain
from ..backend.shapes import Cost, Shapes
from ..backend.shapes.array import Array
from ..nn import Embedding, Module, generators
from ..ops import cross_entropy
from ..tensor import Node, Tensor, no_grad
from ..training.optim import Optimizer

WEIGHTS = ("frozen weights", "trained weights", "Adam moments")  # what is there before a step
ROWS = (*WEIGHTS[:2], "gradients", WEIGHTS[2], "activations")


@dataclass(frozen=True)
class Step:
    """What a step took, in bytes, by row.

    activations: alive between forward and backward   peak: the most at any time, weights included
    kinds: what the activations are, by kind of op   costs: of forward, backward, optimizer.step();
    both on arrays without numbers only
    """

    rows: dict[str, int]
    peak: int
    kinds: dict[str, int]
    costs: tuple[Cost, ...]


def observe(model: Module, optimizer: Optimizer, ids: np.ndarray, meter: Any) -> Step:
    """Run forward, backward and update on ids (2, batch, tokens): inputs and targets.

    Where a model has one answer for a whole sequence, the first id stands for its class.
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

    def done() -> int:
        live, peak = meter.read()
        peaks.append(peak)
        costs.append(getattr(meter, "cost", Cost()))
        meter.reset()
        return int(live)

    logits = model(ids[0])
    whole = len(logits.shape) < 3
    loss = cross_entropy(logits, ids[1, :, 0] % logits.shape[-1] if whole else ids[1])
    del logits
    rows["activations"] = done() - before
    kinds = {}
    if isinstance(current(), Shapes):
        kinds = by_kind(loss, rows["activations"], everything(model, optimizer))
    loss.backward()
    done()
    optimizer.step()
    done()
    rows["gradients"] = nbytes(p.grad for p in weights if p.grad is not None)
    peak = max(peaks) - start + sum(rows[name] for name in WEIGHTS)
    return Step({name: rows[name] for name in ROWS}, peak, kinds, tuple(costs))


def on_shapes(model: Module, optimizer: Optimizer, ids: np.ndarray) -> Step:
    """The step of a live model, on arrays without numbers that imitate the library in use."""
    like = "numpy" if current().on_host else "cupy"
    with using(f"shapes:{like}", plain=is_plain()) as library, undone(model, optimizer):
        meter = library.meter()
        meter.ignore(ids)
        held: dict[int, Any] = {}  # two parameters may share an array

        def instead(array: Any) -> Any:
            if id(array) not in held:
                held[id(array)] = library.module.empty(tuple(array.shape), str(array.dtype))
            return held[id(array)]

        for p in everything(model, optimizer):
            p.data = instead(p.data)
        for states in optimizer.state.values():
            states.update({name: instead(array) for name, array in states.items()})
        return observe(model, optimizer, ids, meter)


def live(model: Module, optimizer: Optimizer, ids: np.ndarray) -> Step:
    """The step on the arrays that there are, which then hold the same bits again."""
    with undone(model, optimizer):
        arrays = [p.data for p in everything(model, optimizer) if p.requires_grad]
        arrays += [*optimizer.arrays().values()]
        copies = [array.copy() for array in arrays]
        try:
            with no_grad():
                model(ids[0])  # what is made once and kept, such as erf's series, is no activation
            with current().meter() as meter:
                return observe(model, optimizer, ids, meter)
        finally:
            for array, copy in zip(arrays, copies):
                array[...] = copy


@contextmanager
def undone(model: Module, optimizer: Optimizer) -> Iterator[None]:
    """Inside, nothing has a gradient. Afterwards parameters and optimizer hold the same arrays as
    before, and generators are where they were."""
    parameters = [(p, p.data, p.grad) for p in everything(model, optimizer)]
    states = {name: (held, dict(held)) for name, held in optimizer.state.items()}
    draws = [(rng, rng.bit_generator.state) for rng in generators(model).values()]
    t = optimizer.t
    try:
        for p, _, _ in parameters:
            p.grad = None
        yield
    finally:
        for p, data, grad in parameters:
            p.data, p.grad = data, grad
        optimizer.t = t
        optimizer.state.clear()
        for name, (held, arrays) in states.items():
            held.clear()
            held.update(arrays)
            optimizer.state[name] = held
        for rng, state in draws:
            rng.bit_generator.state = state


def everything(model: Module, optimizer: Optimizer) -> list[Any]:
    """The parameters of both, each once."""
    return list(dict.fromkeys([*model.parameters(), *optimizer.parameters.values()]))


def random_ids(model: Module, batch: int, tokens: int) -> np.ndarray:
    """(2, batch, tokens): as many ids as the model's first table has rows; ValueError for none."""
    tables = [m.W.shape[0] for _, m in model.named_modules() if isinstance(m, Embedding)]
    if not tables:
        raise ValueError("accounting: the model has no Embedding: how many ids does it know?")
    return np.random.default_rng(0).integers(0, tables[0], (2, batch, tokens))


def nbytes(arrays: Iterable[Any]) -> int:
    """Bytes of these arrays; of those that share memory, of the one that owns it."""
    owners = {}
    for array in arrays:
        while hasattr(getattr(array, "base", None), "nbytes"):
            array = array.base
        owners[id(array)] = array.nbytes
    return sum(owners.values())


def by_kind(loss: Tensor, kept: int, parameters: Iterable[Tensor]) -> dict[str, int]:
    """Kind of op -> bytes of the arrays that its rules hold on to, each buffer once.

    Parameters are not among them. What of `kept` is not found on the tape comes as "other".
    """
    found, kinds = {id(p.data.buffer) for p in parameters}, Counter[str]()
    for node in sorted(_nodes(loss), key=lambda node: node.serial):
        rules = [rule for _, rule in node.edges or ()]
        for array in _held([rules, loss.data if node is loss._node else None], set()):
            if id(array.buffer) not in found:
                found.add(id(array.buffer))
                kinds[node.name] += array.buffer.nbytes
    kinds["other"] = kept - sum(kinds.values())
    return {kind: size for kind, size in kinds.items() if size}


def _targets(node: Node, kind: type) -> list[Any]:
    """Where a node's gradients flow to: nodes, or leaves."""
    found = [target for targets, _ in node.edges or () for target in targets]
    return [target for target in found if isinstance(target, kind)]


def _nodes(loss: Tensor) -> set[Node]:
    found, todo = set[Node](), [loss._node]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += _targets(node, Node)
    return found


def _held(thing: Any, seen: set[int]) -> Iterator[Any]:
    """The arrays that a rule holds: in its closure, and in what that holds."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Array):
        yield thing
    elif isinstance(thing, Tensor):
        yield from _held(thing.data, seen)
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            yield from _held(_content(cell), seen)
    elif isinstance(thing, list | tuple | dict):
        for item in thing.values() if isinstance(thing, dict) else thing:
            yield from _held(item, seen)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it was deleted
        return None
