"""The computation graph behind a Tensor, as a picture and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import asnumpy
from ..backend.blocks import block
from ..backend.settings import thread_settings
from ..ops import replaced
from ..tensor import OPS, Node, Tensor
from .layout import Box, draw

Call = tuple[str, Tensor, list[Tensor]]  # the op's name, its output, its inputs


@dataclass(frozen=True, repr=False)
class Graph:
    """The boxes in order of computation; the last one is the result.

    str() is `.text`; a notebook shows `.svg`. now: the box to highlight; active: the edges
    (from, to) along which gradients flow, against the arrows.
    """

    boxes: tuple[Box, ...]
    now: int | None = None
    active: tuple[tuple[int, int], ...] = ()
    sizes: tuple[tuple[float, float], ...] = ()  # of the boxes; empty: as their text needs

    @property
    def labels(self) -> list[str]:
        """A label for each box: its name, else %1, %2, ..."""
        numbers = iter(range(1, len(self.boxes) + 1))
        return [box.name or (f"%{next(numbers)}" if box.op else box.value or "·")
                for box in self.boxes]

    @property
    def text(self) -> str:
        """One line for each box: name, formula, shape, value, gradient."""
        labels, rows = self.labels, []
        for i, (label, box) in enumerate(zip(labels, self.boxes)):
            if not box.op and not box.name:
                continue  # a constant, written where it is used
            formula = f"{box.op}({', '.join(labels[j] for j in box.inputs)})" if box.op else (
                "frozen" if box.frozen else "leaf")
            rows.append((
                "→" if i == self.now else "", label, f"= {formula}" if box.op else f": {formula}",
                str(box.shape) if box.shape else "", f"value {box.value}" if box.value else "",
                f"grad {box.grad}" if box.grad else "",
            ))
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths) if n).rstrip() for row in rows
        )

    @property
    def svg(self) -> str:
        """The picture as SVG, in the colours of the page around it."""
        label = "; ".join(" ".join(row.split()) for row in self.text.splitlines())
        return draw(self.boxes, label, self.now, self.active, self.sizes)

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto" tabindex="0">{self.svg}</div>'


@dataclass(frozen=True)
class Seen:
    """The op calls recorded by `watching`, by the id of the output's node or tensor."""

    calls: dict[int, Call] = field(default_factory=dict)


@block
def watching() -> Iterator[Seen]:
    """Record the output and inputs of every op in the block, for `graph` (and keep them alive).

    The tape alone has no values and no frozen inputs. An `@op` of your own is recorded if it
    replaces an op of the engine, or if such an op takes its output.
    """
    seen = Seen()

    def recorded(name: str, run: Any) -> Any:
        def call(*inputs: Any, **settings: Any) -> Tensor:
            out: Tensor = run(*inputs, **settings)
            arrays = (x for x in inputs if hasattr(x, "shape") or isinstance(x, int | float))
            tensors = [x if isinstance(x, Tensor) else Tensor(x) for x in arrays]
            if _targets(out._node) <= {id(_of(x)) for x in tensors}:  # not an inner op's output
                seen.calls.setdefault(id(_of(out)), (name, out, tensors))
            return out

        return call

    watched = {name: recorded(name, thread_settings.replaced.get(f, f)) for name, f in OPS.items()}
    with replaced(**watched):
        yield seen


def graph(
    t: Tensor, names: Mapping[str, Any] | None = None, values: bool = True, seen: Seen | None = None
) -> Graph:
    """Return the computation graph of t. names: name -> Tensor (locals() works).

    Named Tensors show their values. With `seen`, the record of `watching()`, all values and the
    frozen inputs are shown, also after backward(). Raises ValueError if nothing is recorded, or
    backward() has consumed the tape.
    """
    return boxes_of(t, names, values, seen)[0]


def boxes_of(
    t: Tensor, names: Mapping[str, Any] | None, values: bool, seen: Seen | None
) -> tuple[Graph, dict[int, int]]:
    """Return (the graph, id of a node or leaf -> number of its box)."""
    calls = dict(seen.calls) if seen else {}
    if t._node is None and id(t) not in calls:
        raise ValueError("graph: nothing is recorded for this tensor: compute it from a tensor "
                         "that requires a gradient")
    label_of: dict[int, str] = {}
    known = {id(_of(x)): x for _, out, inputs in calls.values() for x in (out, *inputs)}
    for name, x in (names or {}).items():
        if isinstance(x, Tensor) and not name.startswith("_"):
            label_of.setdefault(id(_of(x)), name)
            known[id(_of(x))] = x
    known[id(_of(t))] = t
    boxes: list[Box] = []
    number: dict[int, int] = {}
    things = [_of(t)]
    while things:
        thing = things[-1]
        below = _inputs(thing, calls)
        missing = [x for x in below if id(x) not in number]
        if missing:
            things += reversed(missing)
            continue
        things.pop()
        if id(thing) in number:
            continue
        number[id(thing)] = len(boxes)
        tensor = known.get(id(thing), None if isinstance(thing, Node) else thing)
        op = calls[id(thing)][0] if id(thing) in calls else ""
        op = thing.name if isinstance(thing, Node) else op
        grad, name = (None if tensor is None else tensor.grad), label_of.get(id(thing), "")
        boxes.append(Box(
            name, op, tuple(number[id(x)] for x in below), tuple(thing.shape),
            not isinstance(thing, Node) and not thing.requires_grad,
            short(tensor.data) if tensor is not None and (values or not (name or op)) else "",
            short(grad) if values and grad is not None else "",
        ))
    return Graph(tuple(boxes)), number


def _of(x: Tensor) -> Node | Tensor:
    """Return the tape's entry for a Tensor: its node, or the Tensor itself."""
    return x._node or x


def _targets(node: Node | None) -> set[int]:
    """Return the ids of the entries that the node sends gradients to."""
    edges = (node.edges if node else None) or []
    return {id(target) for targets, _ in edges for target in targets if target is not None}


def _inputs(thing: Node | Tensor, calls: Mapping[int, Call]) -> list[Node | Tensor]:
    """Return the inputs in order: nodes, leaves and, if recorded, frozen tensors."""
    if id(thing) in calls:
        return [_of(x) for x in calls[id(thing)][2]]
    if isinstance(thing, Tensor):
        return []
    if thing.edges is None:
        raise ValueError(f"graph: backward() has consumed the tape of {thing.name}: draw it "
                         "before, or compute it in viz.watching()")
    return [target for targets, _ in thing.edges for target in targets if target is not None]


def short(array: Any) -> str:
    """Return up to four numbers as text, or the norm of more."""
    x = np.asarray(asnumpy(array))
    if x.size > 4:
        with np.errstate(over="ignore"):  # a mask may contain the largest float
            norm = np.linalg.norm(x.astype(np.float64))
        return f"norm {norm:.3g}" if x.dtype.kind == "f" else f"{x.size} numbers"
    numbers = [f"{number:.4g}" for number in x.ravel().tolist()]
    return f"[{', '.join(numbers)}]" if x.ndim else numbers[0]
