"""Boxes and edges as SVG: rows from top to bottom, in the colours of the page."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import NamedTuple

from .palette import COLOURS, meaning

LETTER, LINE, FONT = 7.9, 16.0, 13  # px: letter width, line height, font size
SMALLEST = 11  # px: a narrow page shrinks a picture until its letters have this size
PAD, GAP, BETWEEN, MARGIN = 8.0, 12.0, 28.0, 6.0  # px: in, beside, below a box; around all
TIP = 8.0  # px: length of an arrowhead
LONGEST = 14  # letters of a line that is broken only inside words: three boxes fit a phone
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
        """All lines of text in the box; long ones are broken at spaces."""
        rows = [str(self.shape) if self.shape else "",
                f"value {self.value}" if self.value else "",
                f"grad {self.grad}" if self.grad else ""]
        repeated = "", self.title, f"value {self.title}"  # an unnamed constant's title is its value
        rows = [self.title, *(row for row in rows if row not in repeated)]
        return [line for row in rows for line in _broken(row)]


def _broken(row: str) -> list[str]:
    """Return the lines of a row: a long one is broken after its first word, then where it must."""
    if len(row) <= LONGEST:
        return [row]
    first, _, rest = row.partition(" ")
    return [first, *textwrap.wrap(rest, LONGEST, break_long_words=False)]


class Place(NamedTuple):
    """A box, or a point on an edge: middle, top, width, height."""

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
    width = max(p.x + p.w / 2 for p in places) + MARGIN
    height = max(p.y + p.h for p in places) + MARGIN
    parts = [_edge(points, (a, b) in active) for (a, b, _), points in routes.items()]
    parts += [_box(box, at, i == now) for i, (box, at) in enumerate(zip(boxes, places))]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}" '
        f'font-family="{MONO}" font-size="{FONT}" text-anchor="middle" fill="currentColor" '
        f'style="max-width:100%;min-width:{SMALLEST / FONT * width:.0f}px;height:auto">'
        f'{"".join(parts)}</svg>'
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
            size += [(10.0, 0.0)] * len(passed)
    beside: list[list[int]] = [[] for _ in layer]
    for chain in chains.values():
        for a, b in pairwise(chain):
            beside[a].append(b)
            beside[b].append(a)
    rows = [[i for i, at in enumerate(layer) if at == n] for n in range(max(layer) + 1)]
    x = _middles(rows, layer, beside, [w for w, _ in size])
    places, y = [Place(0, 0, 0, 0)] * len(layer), MARGIN
    edge = [(0.0, 0.0)] * len(layer)  # top and bottom of the row
    for row in rows:
        tallest = max(size[i][1] for i in row)
        for i in row:
            places[i] = Place(x[i], y + (tallest - size[i][1]) / 2, *size[i])
            edge[i] = y, y + tallest
        y += tallest + BETWEEN
    ports: dict[tuple[int, int], float] = {}
    for i, box in enumerate(boxes):  # enter from left to right: no crossing
        come = sorted(range(len(box.inputs)), key=lambda k: x[chains[box.inputs[k], i, k][-2]])
        for n, k in enumerate(come):
            ports[i, k] = x[i] + places[i].w * ((n + 1) / (len(come) + 1) - 0.5)
    routes = {}
    for (a, b, k), chain in chains.items():  # straight within a row, curved between rows
        points = [(x[a], places[a].y + places[a].h), (x[a], edge[a][1])]
        for i in chain[1:-1]:
            points += [(x[i], edge[i][0]), (x[i], edge[i][1])]
        routes[a, b, k] = [*points, (ports[b, k], edge[b][0]), (ports[b, k], places[b].y)]
    return places[: len(boxes)], routes


def _layers(boxes: Sequence[Box]) -> list[int]:
    """Return the row of each box: below all its inputs; a leaf just above its first use."""
    layer: list[int] = []
    for box in boxes:
        layer.append(1 + max((layer[j] for j in box.inputs), default=-1))
    for j, box in enumerate(boxes):
        users = [layer[i] for i, other in enumerate(boxes) if j in other.inputs]
        if not box.inputs and users:
            layer[j] = min(users) - 1
    return layer


def _middles(
    rows: list[list[int]], layer: list[int], beside: list[list[int]], w: list[float]
) -> list[float]:
    """Return the middle of each place: near its neighbours, without overlaps."""
    x = [0.0] * len(layer)
    for row in rows:
        for a, b in pairwise(row):
            x[b] = x[a] + (w[a] + w[b]) / 2 + GAP
    for turn in range(24):
        for row in rows if turn % 2 else reversed(rows):
            wanted = {i: x[i] for i in row}
            for i in row:
                side = [j for j in beside[i] if (layer[j] < layer[i]) == bool(turn % 2)]
                near = side if turn < 16 else beside[i]
                if near:
                    wanted[i] = sum(x[j] for j in near) / len(near)
            if turn < 16:
                row.sort(key=lambda i: wanted[i])
            right, left = [wanted[i] for i in row], [wanted[i] for i in row]
            room = [(w[a] + w[b]) / 2 + GAP for a, b in pairwise(row)]
            for n, gap in enumerate(room):
                right[n + 1] = max(right[n + 1], right[n] + gap)
            for n, gap in reversed([*enumerate(room)]):
                left[n] = min(left[n], left[n + 1] - gap)
            for n, i in enumerate(row):
                x[i] = (right[n] + left[n]) / 2
    start = min(middle - size / 2 for middle, size in zip(x, w))
    return [middle - start + MARGIN for middle in x]


def _edge(points: list[tuple[float, float]], active: bool) -> str:
    """Return a smooth line through the points with an arrowhead; an active one points back."""
    (x, y), (u, v) = points[0], points[-1]
    shaft = [(x, y + TIP), *points[1:]] if active else [*points[:-1], (u, v - TIP)]
    path = f"M{shaft[0][0]:.0f} {shaft[0][1]:.0f}"
    for n, ((a, b), (c, d)) in enumerate(pairwise(shaft)):
        bend = f"C{a:.0f} {(b + d) / 2:.0f} {c:.0f} {(b + d) / 2:.0f} " if n % 2 else "L"
        path += f"{bend}{c:.0f} {d:.0f}"
    (middle, tip), back = ((x, y), y + TIP) if active else ((u, v), v - TIP)
    head = f"{middle:.0f},{tip:.0f} {middle - 4:.0f},{back:.0f} {middle + 4:.0f},{back:.0f}"
    look = 'stroke-width="2.5"' if active else 'stroke-width="1.2" opacity=".6"'
    return (
        f'<g {look}><path d="{path}" fill="none" stroke="currentColor"/>'
        f'<polygon points="{head}"/></g>'
    )


def _box(box: Box, at: Place, now: bool) -> str:
    name = "frozen" if box.frozen else meaning(box.name)
    tint = f"var(--viz-{name}, {COLOURS[name]})" if name not in ("", "full") else "currentColor"
    rect = (
        f'<rect x="{at.x - at.w / 2:.0f}" y="{at.y:.0f}" width="{at.w:.0f}" height="{at.h:.0f}" '
        f'rx="{3 if box.op else 13}" stroke-width="{3 if now else 1.4}" '
        f'stroke-dasharray="{"5 3" if box.frozen else "none"}" '
        f'style="stroke:{tint};fill:{tint};fill-opacity:{0.25 if now else 0.09}"/>'
    )
    top = at.y + (at.h - LINE * len(box.lines)) / 2
    texts = "".join(
        f'<text x="{at.x:.0f}" y="{top + LINE * (n + 0.75):.0f}" '
        f'font-weight="{400 if n else 700}">{escape(line)}</text>'
        for n, line in enumerate(box.lines)
    )
    mark = ' data-now=""' if now else ""  # a page scrolls to it
    return f"<g{mark}>{rect}{texts}</g>"
