"""The map of similarities of subspaces: the paper's figure 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .axes import WIDE, Axes, axes, figure
from .palette import shades

TITLE = 0.27  # inches above each map, for its name
APART = 0.25  # inches between two ticks of one axis, at least


@figure
def subspace_similarity(
    grids: Mapping[str, Any], ax: Axes = None, title: str = "",
    names: tuple[str, str] = ("A1", "A2"),
) -> Axes:
    """Draw φ(A1, A2, i, j) of `analysis.subspace_grid`: a row for each i, a column for each j.

    grids: name -> (n, m) numbers from 0 (white) to 1 (black); the maps are one below the other, on
    one scale: give a control, too, such as the grid of two `analysis.random_like`. Above each stand
    its name and its corners, φ(1, 1) and φ(n, m). names: of the two matrices. Raises ValueError for
    no grids, or a grid that has not two axes.
    """
    arrays = {name: np.asarray(grid, np.float64) for name, grid in grids.items()}
    if not arrays or any(grid.ndim != 2 or not grid.size for grid in arrays.values()):
        shapes = ", ".join(f"{name} {grid.shape}" for name, grid in arrays.items()) or "none"
        raise ValueError(f"subspace_similarity: give grids (n, m) by name, not {shapes}: "
                         "analysis.subspace_grid(A1, A2) makes one")
    rows = sum(map(len, arrays.values()))
    high = sum(TITLE + min(2.4, max(1.1, 0.2 * len(grid))) for grid in arrays.values())
    ax = axes(ax, title, (WIDE, 1.1 + high))
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.figure.draw_without_rendering()
    inches = ax.get_window_extent().height / ax.figure.dpi
    gap = rows * TITLE / max(inches - TITLE * len(arrays), TITLE)  # in rows
    top, ticks, most = 0.0, [], max(grid.shape[1] for grid in arrays.values())
    for name, grid in arrays.items():
        (n, m), top = grid.shape, top + gap
        image = ax.imshow(grid, cmap=shades(), vmin=0, vmax=1, aspect="auto", origin="upper",
                          extent=(0.5, m + 0.5, top + n, top), interpolation="nearest")
        ax.text(0.5, top - gap * 0.15, f"{name}: φ(1, 1) = {grid[0, 0]:.2f}, "
                f"φ({n}, {m}) = {grid[-1, -1]:.2f}", va="bottom")
        ticks += [(top + i - 0.5, i) for i in _some(n, int(inches * n / (rows + gap) / APART))]
        top += n
    ax.set_xlim(0.5, most + 0.5)
    ax.set_ylim(top, 0)
    ax.set_yticks([y for y, _ in ticks], [str(i) for _, i in ticks])
    ax.set_xticks(_some(most, 8))
    ax.tick_params(length=2)
    ax.set(xlabel=f"j: the first j directions of {names[1]}",
           ylabel=f"i: the first i of {names[0]}")
    ax.figure.colorbar(image, ax=ax, label="similarity φ", shrink=0.85)
    return ax


def _some(n: int, most: int) -> list[int]:
    """Return about so many of the numbers 1 to n, n or near it included."""
    step = -(-n // max(1, most))
    return [i for i in range(1, n + 1) if i % step == 0 or (i == 1 and step > 2)]
