"""Boxes and edges as SVG: layers from left to right, text that fits, the page's own colours."""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from .palette import COLOURS, meant

if TYPE_CHECKING:
    from .tape import Box, Graph

LETTER, LINE, FONT = 7.9, 17.0, 13  # px: width of a letter, height of a line, size of the letters
PAD, GAP, BETWEEN, MARGIN = 10.0, 18.0, 46.0, 8.0  # in a box, below it, beside it, all around
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


class Place(NamedTuple):
    """A box, or a point that an edge passes through: left, middle, width, height."""

    x: float
    y: float
    w: float
    h: float


def draw(graph: Graph) -> str:
    """The graph as one <svg>, complete in itself, and without ids: many can share a page."""
    places, routes = arrange(graph)
    width = max(p.x + p.w for p in places) + MARGIN
    height = max(p.y + p.h / 2 for p in places) + MARGIN
    parts = [_edge(points, (a, b) in graph.active) for (a, b, _), points in routes.items()]
    parts += [_box(graph, i, box, places[i]) for i, box in enumerate(graph.boxes)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(graph.text)}" font-family="{MONO}" font-size="{FONT}" '
        f'style="max-width:100%;height:auto" class="minilora-graph">{"".join(parts)}</svg>'
    )


def sizes(boxes: tuple[Box, ...]) -> tuple[tuple[float, float], ...]:
    """(width, height) that the text of each box needs."""
    return tuple(
        (2 * PAD + LETTER * max(map(len, box.lines)), PAD + LINE * len(box.lines)) for box in boxes
    )


Routes = dict[tuple[int, int, int], list[tuple[float, float]]]  # (from, to, which input) -> points


def arrange(graph: Graph) -> tuple[list[Place], Routes]:
    """Where each box stands, and through which points each edge goes."""
    boxes, layer = graph.boxes, _layers(graph.boxes)
    size = list(graph.sizes or sizes(boxes))
    chains: dict[tuple[int, int, int], list[int]] = {}
    for i, box in enumerate(boxes):  # a long edge gets a place of its own in each layer it passes
        for k, j in enumerate(box.inputs):
            passed = range(layer[j] + 1, layer[i])
            chains[j, i, k] = [j, *range(len(layer), len(layer) + len(passed)), i]
            layer += passed
            size += [(0.0, 10.0)] * len(passed)
    beside: list[list[int]] = [[] for _ in layer]
    for chain in chains.values():
        for a, b in pairwise(chain):
            beside[a].append(b)
            beside[b].append(a)
    columns = [[i for i, at in enumerate(layer) if at == n] for n in range(max(layer) + 1)]
    y = _heights(columns, layer, beside, [h for _, h in size])
    places, x = [Place(0, 0, 0, 0)] * len(layer), MARGIN
    for column in columns:
        widest = max(size[i][0] for i in column)
        for i in column:
            w, h = size[i] if i < len(boxes) else (widest, size[i][1])
            places[i] = Place(x + (widest - w) / 2, y[i], w, h)
        x += widest + BETWEEN
    routes = {}
    for (a, b, k), chain in chains.items():
        points = [(places[a].x + places[a].w, places[a].y)]
        for i in chain[1:-1]:
            points += [(places[i].x, places[i].y), (places[i].x + places[i].w, places[i].y)]
        port = (k + 1) / (len(boxes[b].inputs) + 1) - 0.5
        routes[a, b, k] = [*points, (places[b].x, places[b].y + port * places[b].h)]
    return places[: len(boxes)], routes


def _layers(boxes: tuple[Box, ...]) -> list[int]:
    """The column of each box: after all its inputs; what was not computed, just before its use."""
    layer: list[int] = []
    for box in boxes:
        layer.append(1 + max((layer[j] for j in box.inputs), default=-1))
    for j, box in enumerate(boxes):
        users = [layer[i] for i, other in enumerate(boxes) if j in other.inputs]
        if not box.inputs and users:
            layer[j] = min(users) - 1
    return layer


def _heights(
    columns: list[list[int]], layer: list[int], beside: list[list[int]], h: list[float]
) -> list[float]:
    """The middle of each place: near its neighbours, over no other."""
    y = [0.0] * len(layer)
    for column in columns:
        for a, b in pairwise(column):
            y[b] = y[a] + (h[a] + h[b]) / 2 + GAP
    for turn in range(24):
        for column in columns if turn % 2 else reversed(columns):
            wanted = {i: y[i] for i in column}
            for i in column:
                side = [j for j in beside[i] if (layer[j] < layer[i]) == bool(turn % 2)]
                near = side if turn < 16 else beside[i]
                if near:
                    wanted[i] = sum(y[j] for j in near) / len(near)
            if turn < 16:
                column.sort(key=lambda i: wanted[i])
            down, up = [wanted[i] for i in column], [wanted[i] for i in column]
            room = [(h[a] + h[b]) / 2 + GAP for a, b in pairwise(column)]
            for n, gap in enumerate(room):
                down[n + 1] = max(down[n + 1], down[n] + gap)
            for n, gap in reversed([*enumerate(room)]):
                up[n] = min(up[n], up[n + 1] - gap)
            for n, i in enumerate(column):
                y[i] = (down[n] + up[n]) / 2
    top = min(middle - size / 2 for middle, size in zip(y, h))
    return [middle - top + MARGIN for middle in y]


def _edge(points: list[tuple[float, float]], active: bool) -> str:
    """A smooth line through the points, with its head at the end; an active one points back."""
    tip = 8.0
    (x, y), (u, v) = points[0], points[-1]
    inner = [(x + tip, y) if active else (x, y), *points[1:-1], (u, v) if active else (u - tip, v)]
    path = f"M{inner[0][0]:.1f} {inner[0][1]:.1f}"
    for n, ((a, b), (c, d)) in enumerate(pairwise(inner)):
        half = (c - a) / 2
        path += (f"L{c:.1f} {d:.1f}" if n % 2 else
                 f"C{a + half:.1f} {b:.1f} {c - half:.1f} {d:.1f} {c:.1f} {d:.1f}")  # fmt: skip
    head = [(x, y), (x + tip, y - 4), (x + tip, y + 4)] if active else [
        (u, v), (u - tip, v - 4), (u - tip, v + 4)]  # fmt: skip
    told = " ".join(f"{a:.1f},{b:.1f}" for a, b in head)
    look = 'stroke-width="2.5"' if active else 'stroke-width="1.2" opacity=".6"'
    return (
        f'<g {look}><path d="{path}" fill="none" stroke="currentColor"/>'
        f'<polygon points="{told}" fill="currentColor"/></g>'
    )


def _box(graph: Graph, i: int, box: Box, at: Place) -> str:
    name = "frozen" if box.frozen else meant(box.name)
    tint = f"var(--viz-{name}, {COLOURS[name]})" if name not in ("", "full") else "currentColor"
    dash = ' stroke-dasharray="5 3"' if box.frozen else ""
    wide = 3 if i == graph.now else 1.4
    texts = []
    for n, line in enumerate(box.lines):
        y = at.y - at.h / 2 + PAD / 2 + LINE * (n + 0.75)
        bold = ' font-weight="bold"' if n == 0 else ""
        texts.append(
            f'<text x="{at.x + at.w / 2:.1f}" y="{y:.1f}" text-anchor="middle" '
            f'fill="currentColor"{bold}>{escape(line)}</text>'
        )
    return (
        f'<g><rect x="{at.x:.1f}" y="{at.y - at.h / 2:.1f}" width="{at.w:.1f}" '
        f'height="{at.h:.1f}" rx="{4 if box.op else at.h / 2:.1f}" stroke-width="{wide}"{dash} '
        f'style="stroke:{tint};fill:{tint};fill-opacity:{0.22 if i == graph.now else 0.1}"/>'
        f"{''.join(texts)}</g>"
    )
