"""The key/value cache of generation, and the positions of tokens after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array, xp
from ..tensor import Tensor


class Cache:
    """Keys and values of the tokens that one attention layer has read; capacity: `size` tokens."""

    def __init__(self, batch: int, size: int, d_model: int, dtype: Any) -> None:
        self.kv: Array = xp.empty((2, batch, size, d_model), dtype=dtype)
        self.n = 0  # tokens in the cache

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch, m, d); return all keys and all values, (batch, n + m, d) each."""
        start, self.n = self.n, self.n + k.shape[1]
        self.kv[0, :, start : self.n], self.kv[1, :, start : self.n] = k.data, v.data
        return Tensor.of(self.kv[0, :, : self.n]), Tensor.of(self.kv[1, :, : self.n])


def positions(x: Tensor, cache: Sequence[Cache] | None, mask: Any) -> Any:
    """Return the positions of x (batch, m, d) after the tokens in the cache: a slice or an array.
    mask: (batch, n + m), False for padding, which takes no position; None: no padding.
    """
    start = cache[0].n if cache else 0
    if mask is None:
        return slice(start, start + x.shape[1])
    shape = x.shape[0], start + x.shape[1]
    if np.shape(mask) != shape or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"mask is {np.shape(mask)}: it must be {shape}, for the tokens in the "
                         "cache and the new ones, 1 for a token and 0 for padding")
    return np.maximum(np.cumsum(mask, axis=1)[:, start:] - 1, 0)     # (batch, m)
