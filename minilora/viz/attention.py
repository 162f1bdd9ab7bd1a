"""The map of attention weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .axes import WIDE, Axes, axes, figure
from .palette import shades


@figure
def attention_map(
    weights: Any, labels: Sequence[str], ax: Axes = None, title: str = "",
    keys: Sequence[str] | None = None,
) -> Axes:
    """Draw attention weights: a row for each query, a column for each key; white 0, black 1.

    weights: (queries, keys), each row sums to 1. labels: tokens of the rows, and of the columns
    too unless `keys` gives others. Raises ValueError if the number of labels does not match.
    """
    weights, keys = np.asarray(weights, np.float64), labels if keys is None else keys
    if weights.shape != (len(labels), len(keys)):
        raise ValueError(f"attention_map: weights {weights.shape} need a label for each row and "
                         f"column, but there are {len(labels)} and {len(keys)}")
    ax = axes(ax, title, (max(WIDE, 1.8 + 0.33 * len(keys)), 1.7 + 0.32 * len(labels)))
    image = ax.imshow(weights, cmap=shades(), vmin=0, vmax=1)
    tokens = [[label.replace("\n", "⏎").replace(" ", "·") or "∅" for label in names]
             for names in (keys, labels)]
    ax.set_xticks(range(len(keys)), tokens[0], rotation=90 if max(map(len, tokens[0])) > 2 else 0)
    ax.set_yticks(range(len(labels)), tokens[1])
    ax.set(xlabel="key (the token attended to)", ylabel="query (the token that attends)")
    ax.figure.colorbar(image, ax=ax, label="attention weight", shrink=0.85)
    return ax
