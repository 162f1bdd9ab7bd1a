"""Rows of ids of unlike lengths as one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def padded(
    rows: Sequence[Any], padding: int = 0, left: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return rows of ids as one array, padded on the right (or left), and where it has tokens.

    out: (batch, tokens) of the longest row, twice
    """
    lengths = np.array([len(row) for row in rows])[:, None]
    most = lengths.max()
    mask = np.arange(most) >= most - lengths if left else np.arange(most) < lengths
    ids = np.full(mask.shape, padding, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask
