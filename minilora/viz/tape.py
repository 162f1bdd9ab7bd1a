"""The tape behind a Tensor as a picture, as Mermaid, as DOT and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backend import asnumpy
from ..backend.settings import thread_settings
from ..ops import replaced
from ..tensor import OPS, Node, Tensor
from .layout import draw

Made = tuple[str, Tensor, list[Tensor]]  # the op's name, its output, its inputs


@dataclass(frozen=True)
class Box:
    """One step of the tape, or what goes in: a leaf that is trained, or something frozen."""

    name: str  # what the reader calls it, or ""
    op: str  # what computed it; "" for what was not computed
    inputs: tuple[int, ...]  # the boxes that it was computed from, in order
    shape: tuple[int, ...]
    frozen: bool
    value: str = ""
    grad: str = ""

    @property
    def title(self) -> str:
        """What is written on top: "u = mul", "mul", "x"."""
        return " = ".join(filter(None, (self.name, self.op))) or self.value or str(self.shape)

    @property
    def lines(self) -> list[str]:
        """What is written in the box."""
        rows = [str(self.shape) if self.shape else "",
                f"value {self.value}" if self.value else "",
                f"grad {self.grad}" if self.grad else ""]
        told = "", self.title, f"value {self.title}"  # the title of what has no name
        return [self.title, *(row for row in rows if row not in told)]


@dataclass(frozen=True, repr=False)
class Graph:
    """The boxes, inputs before what is computed from them; the last one is the result.

    str() is `.text`; a notebook shows `.svg`. now: a box to point at; active: pairs of boxes
    (from, to) along which something flows now, against the arrows.
    """

    boxes: tuple[Box, ...]
    now: int | None = None
    active: tuple[tuple[int, int], ...] = ()
    sizes: tuple[tuple[float, float], ...] = ()  # at least as large is each box

    @property
    def labels(self) -> list[str]:
        """A name for each box: its own, else %1, %2, ..."""
        numbers = iter(range(1, len(self.boxes) + 1))
        return [box.name or (f"%{next(numbers)}" if box.op else box.value or "·")
                for box in self.boxes]

    @property
    def text(self) -> str:
        """A line for each box: name, how it was computed, shape, value, gradient."""
        labels, rows = self.labels, []
        for i, (label, box) in enumerate(zip(labels, self.boxes)):
            if not box.op and not box.name:
                continue  # a number, which stands where it is used
            made = f"{box.op}({', '.join(labels[j] for j in box.inputs)})" if box.op else (
                "frozen" if box.frozen else "leaf")
            rows.append((
                "→" if i == self.now else "", label, f"= {made}" if box.op else f": {made}",
                str(box.shape) if box.shape else "", f"value {box.value}" if box.value else "",
                f"grad {box.grad}" if box.grad else "",
            ))
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(cell.ljust(n) for cell, n in zip(row, widths) if n).rstrip() for row in rows
        )

    @property
    def svg(self) -> str:
        """The picture: from left to right, in the colours of the page that it stands on."""
        return draw(self)

    @property
    def mermaid(self) -> str:
        """The graph for Mermaid, which many places that show Markdown draw."""
        boxes = []
        for i, box in enumerate(self.boxes):
            text, (left, right) = "<br/>".join(box.lines), ("[]" if box.op else "()")
            boxes.append(f'  n{i}{left}"{text}"{right}')
        return "\n".join(["graph LR", *boxes, *(f"  n{j} --> n{i}" for j, i in self.edges)])

    @property
    def dot(self) -> str:
        """The graph for Graphviz."""
        boxes = []
        for i, box in enumerate(self.boxes):
            text, shape = "\\n".join(box.lines), "box" if box.op else "oval"
            boxes.append(f'  n{i} [label="{text}", shape={shape}];')
        edges = [f"  n{j} -> n{i};" for j, i in self.edges]
        return "\n".join(["digraph {", "  rankdir=LR;", *boxes, *edges, "}"])

    @property
    def edges(self) -> list[tuple[int, int]]:
        """(from, to) of every input of every box."""
        return [(j, i) for i, box in enumerate(self.boxes) for j in box.inputs]

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f'<div style="overflow-x:auto" tabindex="0">{self.svg}</div>'


@dataclass(frozen=True)
class Seen:
    """What `watching` has noted: each op's name, output and inputs, by what it put on the tape."""

    made: dict[int, Made] = field(default_factory=dict)


@contextmanager
def watching() -> Iterator[Seen]:
    """Inside, every op's output and inputs are noted (and kept alive), for `graph` to show.

    The tape itself holds no values, and nothing of what is frozen. An `@op` that is the reader's
    own is seen where it stands in for one of the engine's, or where such a one takes its output.
    """
    seen = Seen()

    def noting(name: str, run: Any) -> Any:
        def noted(*inputs: Any, **settings: Any) -> Tensor:
            out: Tensor = run(*inputs, **settings)
            arrays = (x for x in inputs if hasattr(x, "shape") or isinstance(x, int | float))
            held = [x if isinstance(x, Tensor) else Tensor(x) for x in arrays]
            if _targets(out._node) <= {id(_of(x)) for x in held}:  # it is this op that made it
                seen.made.setdefault(id(_of(out)), (name, out, held))
            return out

        return noted

    watched = {name: noting(name, thread_settings.replaced.get(f, f)) for name, f in OPS.items()}
    with replaced(**watched):
        yield seen


def graph(
    t: Tensor, names: Mapping[str, Any] | None = None, values: bool = True, seen: Seen | None = None
) -> Graph:
    """What t was computed from. names: Tensors by what they are called (locals() will do).

    Values are shown of Tensors that are named, and of all that was computed under `watching`; with
    what that has seen the frozen inputs are drawn as well, and it may be after backward().
    Raises ValueError where nothing is recorded, or backward() has consumed it.
    """
    return boxes_of(t, names, values, seen)[0]


def boxes_of(
    t: Tensor, names: Mapping[str, Any] | None, values: bool, seen: Seen | None
) -> tuple[Graph, dict[int, int]]:
    """(the graph, by the id of a node or leaf the number of its box)"""
    made = dict(seen.made) if seen else {}
    if t._node is None and id(t) not in made:
        raise ValueError("graph: nothing is recorded behind this tensor: does anything that it "
                         "was computed from require a gradient?")
    called: dict[int, str] = {}
    known = {id(_of(x)): x for _, out, inputs in made.values() for x in (out, *inputs)}
    for name, x in (names or {}).items():
        if isinstance(x, Tensor) and not name.startswith("_"):
            called.setdefault(id(_of(x)), name)
            known[id(_of(x))] = x
    known[id(_of(t))] = t
    boxes: list[Box] = []
    number: dict[int, int] = {}
    things = [_of(t)]
    while things:
        thing = things[-1]
        below = _inputs(thing, made)
        missing = [x for x in below if id(x) not in number]
        if missing:
            things += reversed(missing)
            continue
        things.pop()
        if id(thing) in number:
            continue
        number[id(thing)] = len(boxes)
        tensor = known.get(id(thing), None if isinstance(thing, Node) else thing)
        op = made[id(thing)][0] if id(thing) in made else ""
        op = thing.name if isinstance(thing, Node) else op
        grad, name = (None if tensor is None else tensor.grad), called.get(id(thing), "")
        boxes.append(Box(
            name, op, tuple(number[id(x)] for x in below), tuple(thing.shape),
            not isinstance(thing, Node) and not thing.requires_grad,
            short(tensor.data) if tensor is not None and (values or not (name or op)) else "",
            short(grad) if values and grad is not None else "",
        ))
    return Graph(tuple(boxes)), number


def _of(x: Tensor) -> Node | Tensor:
    """What stands for a Tensor on the tape."""
    return x._node or x


def _targets(node: Node | None) -> set[int]:
    """The ids of what gradients flow to from here."""
    edges = (node.edges if node else None) or []
    return {id(target) for targets, _ in edges for target in targets if target is not None}


def _inputs(thing: Node | Tensor, made: Mapping[int, Made]) -> list[Node | Tensor]:
    """What it was computed from, in order: nodes, leaves, and, where seen, what is frozen."""
    if id(thing) in made:
        return [_of(x) for x in made[id(thing)][2]]
    if isinstance(thing, Tensor):
        return []
    if thing.edges is None:
        raise ValueError(f"graph: backward() has consumed the tape behind {thing.name}: draw it "
                         "before, or compute it under viz.watching()")
    return [target for targets, _ in thing.edges for target in targets if target is not None]


def short(array: Any) -> str:
    """A few numbers as they are, more of them as their norm."""
    x = np.asarray(asnumpy(array))
    if x.size > 4:
        with np.errstate(over="ignore"):  # a mask may hold the largest number that there is
            norm = np.linalg.norm(x.astype(np.float64))
        return f"norm {norm:.3g}" if x.dtype.kind == "f" else f"{x.size} numbers"
    told = [f"{number:.4g}" for number in x.ravel().tolist()]
    return f"[{', '.join(told)}]" if x.ndim else told[0]
