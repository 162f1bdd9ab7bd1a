"""Broadcasting and its gradient, cell by cell."""

from __future__ import annotations

from typing import Any

import numpy as np

from .axes import WIDE, Axes, axes, figure
from .palette import OTHERS

HIGH = 0.8  # height of a cell of width 1


@figure
def unbroadcast(x: Any, g: Any, ax: Axes = None, title: str = "", name: str = "x") -> Axes:
    """Draw x and its copies in the shape of g; below, g and its sums in the shape of x.

    Cells of one colour belong to one number of x. Raises ValueError if x does not broadcast to
    the shape of g, or g has more than two axes.
    """
    x, g = np.asarray(x, np.float64), np.asarray(g, np.float64)
    if g.ndim > 2:
        raise ValueError(f"unbroadcast: g {g.shape} has {g.ndim} axes: give at most two")
    which = np.arange(x.size).reshape(x.shape)
    copies = np.broadcast_to(which, g.shape)
    sums = np.bincount(copies.ravel(), g.ravel(), x.size)
    ax = axes(ax, title, (WIDE, 4.2))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set(xticks=[], yticks=[], aspect="equal")
    (rows, wide), high = np.atleast_2d(which).shape, np.atleast_2d(copies).shape[0] * HIGH
    lower = (high - rows * HIGH) / 2  # centres x beside its arrow
    right, below = wide + 2.4, -high - 1.6
    copied = f"({', '.join(map(str, g.shape))}{',' * (g.ndim == 1)})"
    own = f"({', '.join(map(str, x.shape))}{',' * (x.ndim == 1)})"
    _grid(ax, (0, -lower), which, x.ravel(), f"{name} {own}")
    _grid(ax, (right, 0), copies, x.ravel()[copies], f"copied to {copied}")
    _grid(ax, (0, below - lower), which, sums, f"gradient of {name}")
    _grid(ax, (right, below), copies, g, f"its gradient {copied}")
    for y, start, end, word in ((0, wide, right, "copy"), (below, right, wide, "sum")):
        gap = 0.35 if end > start else -0.35
        at = y - high / 2
        ax.annotate("", (end - gap, at), (start + gap, at), arrowprops={"arrowstyle": "->"})
        ax.text((start + end) / 2, at + 0.15, word, ha="center", va="bottom")
    ax.set_xlim(-0.1, right + np.atleast_2d(copies).shape[1] + 0.1)
    ax.set_ylim(below - high - 0.1, 1.0)
    ax.set(xlabel=f"each colour is one number of {name}")
    return ax


def _grid(ax: Axes, corner: tuple[float, float], which: Any, numbers: Any, title: str) -> None:
    """Draw numbered cells, coloured by the number of x they belong to; corner: (left, top)."""
    from matplotlib.patches import Rectangle

    which = np.atleast_2d(which)
    numbers = np.asarray(numbers).reshape(which.shape)
    left, top = corner
    for (i, j), number in np.ndenumerate(numbers):
        tint, at = OTHERS[which[i, j] % len(OTHERS)], (left + j, top - (i + 1) * HIGH)
        ax.add_patch(Rectangle(at, 1, HIGH, facecolor=(tint, 0.3), edgecolor="white", lw=2))
        ax.text(at[0] + 0.5, at[1] + HIGH / 2, f"{number:.3g}", ha="center", va="center")
    ax.text(left, top + 0.15, title, va="bottom")
