"""Figures of results: quality against parameters, forgetting, latency, adapters by tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from .axes import WIDE, Axes, axes, figure, legend
from .figures import DASHES, FEWEST, bands, broken, counted, horizontal
from .palette import colour, shades

MARKERS = "osD^vPX<>*"
UNITS = {1e9: "G", 1e6: "M", 1e3: "k"}
MOST = 6  # ticks of a log axis
FAR = (8, 15, 24)  # points from a dot to its label, and where around it, in degrees
GOOD = 100  # the cost of a label that covers no other label and little of a line
AROUND = (0, 180, 90, 270, 45, 135, 225, 315)
Seeds = float | Sequence[float]  # a number, or one for each seed


@figure
def quality_vs_parameters(
    results: Mapping[str, Mapping[int, Seeds]], ax: Axes = None, title: str = "",
    ylabel: str = "held-out loss (nats a token)", levels: Mapping[str, float] | None = None,
) -> Axes:
    """Draw a curve for each method, name -> {trained parameters: the results of the seeds}.

    The axis of parameters is logarithmic. Points are medians, with a min-max band from three seeds
    on. Each method has a colour, and a marker that no other one has. levels: name -> height of a
    horizontal line, such as the frozen base. Raises ValueError for a number of parameters below 1.
    """
    at = [n for sweep in results.values() for n in sweep]
    if not at or min(at) < 1:
        raise ValueError("quality_vs_parameters: each method needs results by its number of "
                         "trained parameters, at least 1: draw the base with levels=")
    ax = axes(ax, title, (WIDE, 3.8))
    words = bands(ax, results, MARKERS)
    horizontal(ax, levels)
    _logarithmic(ax, min(at), max(at))
    ax.set(xlabel=f"trained parameters\n({words})", ylabel=ylabel)
    legend(ax)
    return ax


class Dot(NamedTuple):
    """The results of one setting: one number for each seed, on both axes."""

    name: str
    x: np.ndarray
    y: np.ndarray


@figure
def forgetting(
    results: Mapping[str, Mapping[str, tuple[Seeds, Seeds]]], ax: Axes = None, title: str = "",
    base: tuple[float, float] | None = None, xlabel: str = "loss on the new task",
    ylabel: str = "loss on the base's text", log: bool = False,
) -> Axes:
    """Draw what each method learned against what it forgot: a point for each of its settings.

    results: method -> {setting, such as "r = 4": (losses on the new task, losses on the text of
    the base)}, a number each or one for each seed. A point is a median; from three seeds on it has
    lines from minimum to maximum. The settings of a method are joined in their order, and each is
    labelled with its name; the name of a single one stands in the legend. base: the losses of the
    base, as dashed lines. log: both axes are logarithmic.
    """
    ax = axes(ax, title, (WIDE, 4.2))
    dots, labelled, seeds, tints = list[Dot](), list[Dot](), set[int](), list[str]()
    for i, (method, settings) in enumerate(results.items()):
        own = [Dot(name, *(np.ravel(losses).astype(np.float64) for losses in pair))
               for name, pair in settings.items()]
        for dot in own:
            if len(dot.x) != len(dot.y):
                raise ValueError(f"forgetting: {method}, {dot.name}: {len(dot.x)} losses on the "
                                 f"new task, {len(dot.y)} on the base's: give one of each a seed")
        seeds |= {len(dot.x) for dot in own}
        tint = colour(method, i)
        dashes = DASHES[tints.count(tint) % len(DASHES)]
        tints.append(tint)
        x, y = [np.median(dot.x) for dot in own], [np.median(dot.y) for dot in own]
        alone = f", {own[0].name}" if len(own) == 1 and own[0].name else ""
        ax.plot(x, y, MARKERS[i % len(MARKERS)] + dashes, color=tint, ms=6, lw=1,
                label=method + alone)
        for dot, across, up in zip(own, x, y):
            if len(dot.x) >= FEWEST:
                ax.plot([dot.x.min(), dot.x.max()], [up, up], color=tint, lw=1)
                ax.plot([across, across], [dot.y.min(), dot.y.max()], color=tint, lw=1)
        dots += own
        labelled += own * (len(own) > 1)
    if base is not None:
        ax.axvline(base[0], color=colour("base"), lw=1.2, ls="--", label="frozen base")
        ax.axhline(base[1], color=colour("base"), lw=1.2, ls="--")
    ax.margins(0.15)
    for i, axis in enumerate("xy" * log):
        values = np.concatenate([dot[i + 1] for dot in dots] + ([[base[i]]] if base else []))
        _logarithmic(ax, float(values.min()) / 1.3, float(values.max()) * 1.3, axis)
    spread = ", lines: minimum to maximum" if max(seeds) >= FEWEST else ""
    ax.set(xlabel=f"{xlabel}\n(median of {counted(seeds)}{spread})", ylabel=ylabel)
    legend(ax)
    _label(ax, [(float(np.median(d.x)), float(np.median(d.y)), d.name) for d in labelled])
    return ax


@figure
def latency_bars(
    times: Mapping[str, Seeds], ax: Axes = None, title: str = "", against: str = "",
    unit: str = "ms",
) -> Axes:
    """Draw times as bars, name -> one for each turn: the median, with a line from least to most.

    Each bar has its number and how much more that is than `against`, the name of another one (the
    first, by default), in per cent: table 1. Raises ValueError for an unknown name.
    """
    against = against or next(iter(times), "")
    if against not in times:
        raise ValueError(f"latency_bars: there is no {against!r} to compare with: give one of "
                         f"{', '.join(times)}")
    ax = axes(ax, title, (WIDE, 1.3 + 0.5 * len(times)))
    turns = [np.ravel(t).astype(np.float64) for t in times.values()]
    names, medians = broken(times), [float(np.median(t)) for t in turns]
    one = float(np.median(times[against]))
    tints = [colour(name, i) for i, name in enumerate(times)]
    ax.barh(names, medians, color=tints, height=0.6)
    most = max(float(t.max()) for t in turns)
    digits = next((n for n, size in enumerate((100, 10, 1)) if most >= size), 3)
    for i, (name, values, median) in enumerate(zip(times, turns, medians)):
        if len(values) > 1:
            ax.plot([values.min(), values.max()], [i, i], "|-", color="0.35", lw=1.5, ms=8)
        more = "" if name == against else f"  ({100 * (median / one - 1):+.0f} %)"
        ax.annotate(f"{median:,.{digits}f} {unit}{more}", (float(values.max()), i), (5, 0),
                    textcoords="offset points", va="center")
    ax.set_xlim(0, 1.75 * most)  # space for the numbers
    ax.invert_yaxis()
    spread = ", line: least to most" if any(len(t) > 1 for t in turns) else ""
    ax.set(xlabel=f"time ({unit}): median{spread};\nin brackets: compared with {against}")
    return ax


@figure
def cross_table(
    values: Mapping[str, Mapping[str, float]], ax: Axes = None, title: str = "", xlabel: str = "",
    ylabel: str = "", label: str = "held-out loss (nats a token)",
) -> Axes:
    """Draw a number for each pair, row -> {column: number}: each adapter's loss on each task.

    Each cell has its number and a shade, from white for the least number to black for the greatest.
    label: what the numbers are. Raises ValueError for rows with different columns.
    """
    rows, columns = [*values], [*next(iter(values.values()), {})]
    if not columns or any([*row] != columns for row in values.values()):
        given = "; ".join(f"{name} has {', '.join(row)}" for name, row in values.items())
        raise ValueError(f"cross_table: each row needs the same columns in the same order: {given}")
    table = np.array([[row[name] for name in columns] for row in values.values()], np.float64)
    ax = axes(ax, title, (WIDE, 1.5 + 0.45 * len(rows)))
    image = ax.imshow(table, cmap=shades(), aspect="auto")
    low, high = float(table.min()), float(table.max())
    for (i, j), value in np.ndenumerate(table):
        dark = value - low > (high - low) / 3
        ax.text(j, i, f"{value:.3g}", ha="center", va="center", color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.85)
    return ax


def _logarithmic(ax: Axes, low: float, high: float, axis: str = "x") -> None:
    """Make an axis logarithmic, with a few ticks: 1k, 10k, 100k, or 500, 1k, 2k if it is short."""
    ax.set(**{f"{axis}scale": "log"})
    ax.minorticks_off()
    first, last = low / 1.3, high * 1.3
    powers = [10.0**n for n in range(int(math.log10(low)) - 1, int(math.log10(high)) + 2)]
    ticks: list[float] = []
    for steps in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        if len(ticks) < 3:
            every = (step * power for power in powers for step in steps)
            ticks = [x for x in every if first <= x <= last]
    ticks = ticks[:: -(-len(ticks) // MOST)]
    (ax.set_xticks if axis == "x" else ax.set_yticks)(ticks, [_short(x) for x in ticks])
    ax.set(**{f"{axis}lim": (first, last)})


def _short(x: float) -> str:
    """Return a number of parameters as a tick's text: "500", "20k", "1M"."""
    size = next((size for size in UNITS if x >= size), 1.0)
    return f"{x / size:g}{UNITS.get(size, '')}"


def _label(ax: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's text beside it, where it covers least of other labels and of lines."""
    ax.figure.draw_without_rendering()  # computes the layout
    lines = [xy for line in ax.lines for xy in _along(line)]
    inside, taken = ax.get_window_extent(), list[Any]()

    def cost(label: Any) -> float:
        box = label.get_window_extent().padded(2)
        on_lines = sum(box.contains(*xy) for xy in lines)
        out = box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
        covered = 10 * on_lines + 1000 * sum(map(box.overlaps, taken))
        return float(math.hypot(*label.xyann) + covered + 5000 * out)

    for x, y, text in points:
        options: list[tuple[float, Any]] = []
        for far in FAR:
            labels = [_beside(ax, x, y, text, far, angle) for angle in AROUND]
            options += [(cost(label), label) for label in labels]
            if min(options, key=itemgetter(0))[0] < GOOD:
                break
        best = min(options, key=itemgetter(0))[1]
        taken.append(best.get_window_extent().padded(2))
        for _, label in options:
            if label is not best:
                label.remove()


def _beside(ax: Axes, x: float, y: float, text: str, far: float, angle: float) -> Any:
    """Write a text so many points from (x, y), at an angle in degrees."""
    dx, dy = (round(far * f(math.radians(angle)), 3) for f in (math.cos, math.sin))
    across = "left" if dx > 0 else "right" if dx < 0 else "center"
    up = "bottom" if dy > 0 else "top" if dy < 0 else "center"
    return ax.annotate(text, (x, y), (dx, dy), textcoords="offset points", ha=across, va=up)


def _along(line: Any) -> np.ndarray:
    """Return points of a line on the page, some pixels apart."""
    ends = line.get_transform().transform(np.column_stack(line.get_data(orig=False)))
    parts = [np.linspace(a, b, 2 + int(np.hypot(*(b - a)) / 6)) for a, b in pairwise(ends)]
    return np.concatenate([ends, *parts])
