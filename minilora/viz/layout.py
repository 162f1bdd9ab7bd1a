"""Boxes and edges as SVG: columns from left to right, in the colours of the page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import NamedTuple

from .palette import COLOURS, meaning

LETTER, LINE, FONT = 7.9, 17.0, 13  # px: letter width, line height, font size
PAD, GAP, BETWEEN, MARGIN = 10.0, 18.0, 46.0, 8.0  # px: in, below, beside a box; around all
TIP = 8.0  # px: length of an arrowhead
MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"


Sizes = Sequence[tuple[float, float]]  # (width, height)
Routes = dict[tuple[int, int, int], list[tuple[float, float]]]  # (from, to, which input) -> points


@dataclass(frozen=True)
class Box:
    """One step of the tape, a trained leaf, or a frozen input."""

    name: str  # the reader's name for it, or ""
    op: str  # the op that computed it; "" for a leaf
    inputs: tuple[int, ...]  # the boxes it was computed from, in order
    shape: tuple[int, ...]
    frozen: bool
    value: str = ""
    grad: str = ""

    @property
    def title(self) -> str:
        """The first line: "u = mul", "mul" or "x"."""
        return " = ".join(filter(None, (self.name, self.op))) or self.value or str(self.shape)

    @property
    def lines(self) -> list[str]:
        """All lines of text in the box."""
        rows = [str(self.shape) if self.shape else "",
                f"value {self.value}" if self.value else "",
                f"grad {self.grad}" if self.grad else ""]
        repeated = "", self.title, f"value {self.title}"  # an unnamed constant's title is its value
        return [self.title, *(row for row in rows if row not in repeated)]


class Place(NamedTuple):
    """A box, or a point on an edge: left, middle, width, height."""

    x: float
    y: float
    w: float
    h: float


def draw(
    boxes: Sequence[Box], label: str, now: int | None = None,
    active: Collection[tuple[int, int]] = (), sizes: Sizes = (),
) -> str:
    """Return the boxes and edges as one <svg>, self-contained and without ids.

    label: the picture in words. now: the box to highlight; active: edges (from, to) to draw
    thick and pointing back; sizes: the size of each box (empty: as its text needs).
    """
    places, routes = arrange(boxes, sizes)
    width = max(p.x + p.w for p in places) + MARGIN
    height = max(p.y + p.h / 2 for p in places) + MARGIN
    parts = [_edge(points, (a, b) in active) for (a, b, _), points in routes.items()]
    parts += [_box(box, at, i == now) for i, (box, at) in enumerate(zip(boxes, places))]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}" '
        f'font-family="{MONO}" font-size="{FONT}" text-anchor="middle" fill="currentColor" '
        f'style="max-width:100%;min-width:{0.7 * width:.0f}px;height:auto">{"".join(parts)}</svg>'
    )


def text_sizes(boxes: Sequence[Box]) -> Sizes:
    """Return the (width, height) that the text of each box needs."""
    return [
        (2 * PAD + LETTER * max(map(len, box.lines)), PAD + LINE * len(box.lines)) for box in boxes
    ]


def arrange(boxes: Sequence[Box], sizes: Sizes = ()) -> tuple[list[Place], Routes]:
    """Return the place of each box and the points that each edge passes through."""
    layer, size = _layers(boxes), [*(sizes or text_sizes(boxes))]
    chains: dict[tuple[int, int, int], list[int]] = {}
    for i, box in enumerate(boxes):  # a long edge gets a place in each layer that it passes
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
    edge = [(0.0, 0.0)] * len(layer)  # left and right of the column
    for column in columns:
        widest = max(size[i][0] for i in column)
        for i in column:
            places[i] = Place(x + (widest - size[i][0]) / 2, y[i], *size[i])
            edge[i] = x, x + widest
        x += widest + BETWEEN
    ports: dict[tuple[int, int], float] = {}
    for i, box in enumerate(boxes):  # enter in order of heights: no crossing
        come = sorted(range(len(box.inputs)), key=lambda k: y[chains[box.inputs[k], i, k][-2]])
        for n, k in enumerate(come):
            ports[i, k] = y[i] + places[i].h * ((n + 1) / (len(come) + 1) - 0.5)
    routes = {}
    for (a, b, k), chain in chains.items():  # straight within a column, curved between columns
        points = [(places[a].x + places[a].w, y[a]), (edge[a][1], y[a])]
        for i in chain[1:-1]:
            points += [(edge[i][0], y[i]), (edge[i][1], y[i])]
        routes[a, b, k] = [*points, (edge[b][0], ports[b, k]), (places[b].x, ports[b, k])]
    return places[: len(boxes)], routes


def _layers(boxes: Sequence[Box]) -> list[int]:
    """Return the column of each box: after all its inputs; a leaf just before its first use."""
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
    """Return the middle height of each place: near its neighbours, without overlaps."""
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
    """Return a smooth line through the points with an arrowhead; an active one points back."""
    (x, y), (u, v) = points[0], points[-1]
    shaft = [(x + TIP, y), *points[1:]] if active else [*points[:-1], (u - TIP, v)]
    path = f"M{shaft[0][0]:.0f} {shaft[0][1]:.0f}"
    for n, ((a, b), (c, d)) in enumerate(pairwise(shaft)):
        bend = f"C{(a + c) / 2:.0f} {b:.0f} {(a + c) / 2:.0f} {d:.0f} " if n % 2 else "L"
        path += f"{bend}{c:.0f} {d:.0f}"
    (tip, middle), back = ((x, y), x + TIP) if active else ((u, v), u - TIP)
    head = f"{tip:.0f},{middle:.0f} {back:.0f},{middle - 4:.0f} {back:.0f},{middle + 4:.0f}"
    look = 'stroke-width="2.5"' if active else 'stroke-width="1.2" opacity=".6"'
    return (
        f'<g {look}><path d="{path}" fill="none" stroke="currentColor"/>'
        f'<polygon points="{head}"/></g>'
    )


def _box(box: Box, at: Place, now: bool) -> str:
    name = "frozen" if box.frozen else meaning(box.name)
    tint = f"var(--viz-{name}, {COLOURS[name]})" if name not in ("", "full") else "currentColor"
    top, middle = at.y - at.h / 2, at.x + at.w / 2
    rect = (
        f'<rect x="{at.x:.0f}" y="{top:.0f}" width="{at.w:.0f}" height="{at.h:.0f}" '
        f'rx="{3 if box.op else 13}" stroke-width="{3 if now else 1.4}" '
        f'stroke-dasharray="{"5 3" if box.frozen else "none"}" '
        f'style="stroke:{tint};fill:{tint};fill-opacity:{0.25 if now else 0.09}"/>'
    )
    texts = "".join(
        f'<text x="{middle:.0f}" y="{top + PAD / 2 + LINE * (n + 0.75):.0f}" '
        f'font-weight="{400 if n else 700}">{escape(line)}</text>'
        for n, line in enumerate(box.lines)
    )
    return f"<g>{rect}{texts}</g>"
