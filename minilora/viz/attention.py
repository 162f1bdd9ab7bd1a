"""Figures of matrices: an update beside its weights, subspaces, what attention looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .axes import Axes, axes, figure
from .palette import COLOURS, ZERO


@figure
def attention_map(
    weights: Any, labels: Sequence[str], ax: Axes = None, title: str = "",
    keys: Sequence[str] | None = None,
) -> Axes:
    """Row: the token that looks; column: the token looked at; white 0, black 1.

    weights: (tokens, tokens), each row adds up to 1; keys: the columns' labels, if other ones.
    """
    from matplotlib.colors import LinearSegmentedColormap

    weights, keys = np.asarray(weights, np.float64), labels if keys is None else keys
    if weights.shape != (len(labels), len(keys)):
        told = f"the weights are {weights.shape}, and there are {len(labels)} labels for rows"
        raise ValueError(f"attention_map: {told} and {len(keys)} for columns: give one for each")
    ax = axes(ax, title, (2.4 + 0.34 * len(keys), 1.6 + 0.32 * len(labels)))
    scale = LinearSegmentedColormap.from_list("minilora", [ZERO, COLOURS["frozen"], "#111111"])
    image = ax.imshow(weights, cmap=scale, vmin=0, vmax=1)
    shown = [[label.replace("\n", "⏎").replace(" ", "·") or "∅" for label in names]
             for names in (keys, labels)]
    ax.set_xticks(range(len(keys)), shown[0], rotation=90 if max(map(len, shown[0])) > 2 else 0)
    ax.set_yticks(range(len(labels)), shown[1])
    ax.set(xlabel="looked at", ylabel="the token that looks")
    ax.figure.colorbar(image, ax=ax, label="share of its attention", shrink=0.85)
    return ax
