"""Figures of matrices: an update beside its weights, subspaces, what attention looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .axes import Axes, axes, figure, need, panels
from .palette import ABOVE, BELOW, COLOURS, ZERO


@figure
def heatmaps(matrices: Mapping[str, Any], ax: Axes = None, title: str = "") -> Axes:
    """Matrices side by side on one scale, which runs from minus to plus the largest; zero is white.

    ax: as many axes, which are returned. Each name is written above, with the matrix's norm.
    """
    held = {name: np.asarray(matrix, np.float64) for name, matrix in matrices.items()}
    most = max(float(np.abs(matrix).max(initial=0)) for matrix in held.values()) or 1.0
    grid: list[Axes] = panels(1, len(held), (2.6 * len(held) + 1.2, 2.9)) if ax is None else [*ax]
    first = next(iter(held))
    norms = {name: float(np.linalg.norm(matrix)) for name, matrix in held.items()}
    for ax, (name, matrix) in zip(grid, held.items()):
        image = ax.imshow(matrix, cmap=_diverging(), vmin=-most, vmax=most, aspect="auto")
        share = "" if name == first else f" ({norms[name] / (norms[first] or 1):.0%} of {first})"
        ax.set_title(f"{name}\nnorm {norms[name]:.3g}{share}", fontsize="medium")
        ax.set(xlabel=f"{matrix.shape[1]} inputs")
        ax.set_xticks([])
        ax.set_yticks([])
    grid[0].set(ylabel=f"{len(held[first])} outputs")
    grid[0].figure.colorbar(image, ax=grid, label="value of an entry", pad=0.01, aspect=30)
    if title:
        grid[0].figure.suptitle(title, wrap=True)
    return grid


def delta_heatmap(W0: Any, BA: Any, ax: Axes = None, title: str = "") -> Axes:
    """W0, BA and W0 + BA side by side on one scale, zero white; ax: three axes."""
    W0, BA = np.asarray(W0, np.float64), np.asarray(BA, np.float64)
    return heatmaps({"W0": W0, "BA": BA, "W0 + BA": W0 + BA}, ax, title)


@figure
def subspace_similarity(
    matrix: Any, ax: Axes = None, title: str = "", xlabel: str = "j directions of the one",
    ylabel: str = "i directions of the other",
) -> Axes:
    """Entry (i, j), in [0, 1]: how much of the first i directions lies in the first j of another.

    White is 0 and black is 1 in every such figure, so that two of them can be compared.
    """
    ax = axes(ax, title, (4.8, 4.0))
    matrix = np.asarray(matrix, np.float64)
    aspect = "equal" if matrix.shape[0] == matrix.shape[1] else "auto"
    image = ax.imshow(matrix, cmap=_rising(), vmin=0, vmax=1, origin="lower", aspect=aspect)
    for axis, size in ((ax.xaxis, matrix.shape[1]), (ax.yaxis, matrix.shape[0])):
        at = np.unique(np.linspace(0, size - 1, min(size, 8)).round().astype(int))
        axis.set_ticks(at, [str(i + 1) for i in at])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.figure.colorbar(image, ax=ax, label="similarity", shrink=0.85)
    return ax


@figure
def attention_map(
    weights: Any, labels: Sequence[str], ax: Axes = None, title: str = "",
    keys: Sequence[str] | None = None,
) -> Axes:
    """Row: the token that looks; column: the token looked at; white 0, black 1.

    weights: (tokens, tokens), each row adds up to 1; keys: the columns' labels, if other ones.
    """
    weights, keys = np.asarray(weights, np.float64), labels if keys is None else keys
    if weights.shape != (len(labels), len(keys)):
        told = f"the weights are {weights.shape}, and there are {len(labels)} labels for rows"
        raise ValueError(f"attention_map: {told} and {len(keys)} for columns: give one for each")
    ax = axes(ax, title, (2.4 + 0.34 * len(keys), 1.6 + 0.32 * len(labels)))
    image = ax.imshow(weights, cmap=_rising(), vmin=0, vmax=1)
    shown = [[label.replace("\n", "⏎").replace(" ", "·") or "∅" for label in names]
             for names in (keys, labels)]
    ax.set_xticks(range(len(keys)), shown[0], rotation=90 if max(map(len, shown[0])) > 2 else 0)
    ax.set_yticks(range(len(labels)), shown[1])
    ax.set(xlabel="looked at", ylabel="the token that looks")
    ax.figure.colorbar(image, ax=ax, label="share of its attention", shrink=0.85)
    return ax


def _diverging() -> Any:
    need()
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("minilora", [BELOW, ZERO, ABOVE])


def _rising() -> Any:
    need()
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("minilora", [ZERO, COLOURS["frozen"], "#111111"])
