"""The backward pass, one node at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import asnumpy
from ..tensor import Node, Tensor, unbroadcast
from .layout import Box, text_sizes
from .tape import Graph, Seen, boxes_of, short

Visit = tuple[Node, np.ndarray, list[tuple[Any, np.ndarray]]]  # a node, its gradient, what it sends


def backward_steps(
    t: Tensor, names: Mapping[str, Any] | None = None, seen: Seen | None = None
) -> list[tuple[str, Graph]]:
    """Run t.backward(); return (caption, graph) before it and after each node.

    The nodes come in the engine's order. Afterwards the leaves have their .grad and the tape is
    consumed, as after any backward(). names, seen: as for `graph`.
    """
    drawn, number = boxes_of(t, names, True, seen)
    nodes, visits = _nodes(t), list[Visit]()
    expected = dict.fromkeys(number.values(), 0)
    for node in nodes:
        for targets, _ in node.edges or ():
            for target in targets:
                if target is not None:
                    expected[number[id(target)]] += 1
        node.edges = [(targets, _recorded(node, targets, rule, visits))
                      for targets, rule in node.edges or ()]
    t.backward()

    labels = [box.name or box.op or "·" for box in drawn.boxes]
    on_tape = {number[id(node)] for node in nodes} | {i for i, n in expected.items() if n}
    arrived: dict[int, list[np.ndarray]] = {len(drawn.boxes) - 1: [np.ones(t.shape)]}
    boxes = _with_grads(drawn, arrived, expected, on_tape)
    start = f"The forward pass is done. The gradient of {labels[-1]} with respect to "
    frames = [(f"{start}itself is 1.", replace(drawn, boxes=boxes, now=len(boxes) - 1))]
    for node, g, sent in visits:
        now = number[id(node)]
        shares = []
        for target, grad in reversed(sent):
            to = number[id(target)]
            arrived.setdefault(to, []).append(grad)
            shares.append(f"{short(grad)} to {labels[to]}")
        waiting = {number[id(target)] for target, _ in sent}
        waiting = {i for i in waiting if len(arrived[i]) < expected[i]}
        caption = f"{labels[now]} has its full gradient, {short(g)}, and sends {_list(shares)}."
        caption += "".join(
            f" {labels[i]} waits for {expected[i] - len(arrived[i])} more." for i in sorted(waiting)
        )
        boxes = _with_grads(drawn, arrived, expected, on_tape)
        active = tuple((number[id(target)], now) for target, _ in sent)
        frames.append((caption, replace(drawn, boxes=boxes, now=now, active=active)))
    fit = tuple(
        (max(w for w, _ in box), max(h for _, h in box))
        for box in zip(*(text_sizes(graph.boxes) for _, graph in frames))
    )
    return [(caption, replace(graph, sizes=fit)) for caption, graph in frames]


def _nodes(t: Tensor) -> list[Node]:
    """Return all nodes of the tape of t, each once."""
    nodes: dict[int, Node] = {}
    things: list[Any] = [t._node]
    while things:
        thing = things.pop()
        if isinstance(thing, Node) and id(thing) not in nodes:
            nodes[id(thing)] = thing
            things += [target for targets, _ in thing.edges or () for target in targets]
    return [*nodes.values()]


def _recorded(node: Node, targets: Any, rule: Any, visits: list[Visit]) -> Any:
    """Return the rule wrapped so that it records its gradient and its results."""

    def wrapped(g: Any) -> Any:
        result = rule(g)
        if not visits or visits[-1][0] is not node:
            visits.append((node, asnumpy(g), []))
        for target, grad in zip(targets, result if isinstance(result, tuple) else (result,)):
            if target is not None and hasattr(grad, "shape"):
                share = asnumpy(grad).copy()  # the engine adds to it in place
                share = unbroadcast(share, target.shape, node.name)
                visits[-1][2].append((target, share))
        return result

    return wrapped


def _with_grads(
    graph: Graph, arrived: Mapping[int, list[np.ndarray]], expected: Mapping[int, int],
    on_tape: set[int],
) -> tuple[Box, ...]:
    """Return the boxes with their gradients so far: "2 + …", and "2 + 3 = 5" when complete."""
    boxes = []
    for i, box in enumerate(graph.boxes):
        parts, grad = arrived.get(i, []), ""
        if i in on_tape:
            grad = "?"
        if parts:
            few = parts[0].size <= 4 and len(parts) <= 4
            grad = " + ".join(map(short, parts)) if few else short(sum(parts))
            if len(parts) < expected[i]:
                grad += " + …"
            elif few and len(parts) > 1:
                grad += f" = {short(sum(parts))}"
        boxes.append(replace(box, grad=grad))
    return tuple(boxes)


def _list(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "nothing"
