"""The places of trained tokens among given ones, and the arrays that are built by them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..backend import asarray
from ..tensor import Tensor


class Layout:
    """The places of n given tokens and lp + li trained ones, in rows of lp + n + li.

    ends     (batch,)               the argument: the length of each row's prompt
    places   (batch, n)             the place of each given token
    last     (batch, n)             the place at which a decoder's output for it is read
    source   (batch, lp + n + li)   the token at each place: i < n is given, n + j is trained
    """

    def __init__(self, ends: np.ndarray, n: int, lp: int, li: int) -> None:
        at, end = np.arange(n), ends[:, None]
        self.n, self.places = n, lp + at + li * (at >= end)
        self.last = self.places + li * (at == end - 1)
        at = np.arange(-lp, n + li)
        late = n + lp + at - end  # the token here, if it is one of li
        self.source = np.select(
            [at < 0, at < end, at < end + li], [n + lp + at, at, late], at - li)

    def spread(self, given: np.ndarray | None, other: Any) -> np.ndarray | None:
        """Put ids, mask or types (batch, n) at their places, `other` at those of trained tokens."""
        if given is None:
            return None
        others = np.full((len(given), self.source.shape[1] - self.n), other, given.dtype)
        return np.take_along_axis(np.concatenate([given, others], 1), self.source, 1)

    def insert(self, x: Tensor, E: Tensor) -> Tensor:
        """Put x (batch, n, d) and E (lp + li, d) at their places: (batch, lp + n + li, d)."""
        batch, n, d = x.shape
        rows = ops.concat(x.reshape(batch * n, d), E, axis=0)
        row = np.arange(batch)[:, None]
        at = self.source + n * np.where(self.source < n, row, batch - 1)
        return ops.embedding(rows, at, dtype=x.dtype)

    def replace(self, x: Tensor, E: Tensor) -> Tensor:
        """Put E (lp + li, d) in x (batch, lp + n + li, d) at the places of trained tokens."""
        trained = asarray((self.source >= self.n)[..., None].astype(str(x.dtype)))
        rows = ops.embedding(E, np.maximum(self.source - self.n, 0), dtype=x.dtype)
        out: Tensor = x * (1 - trained) + rows * trained
        return out

    def read(self, x: Tensor, places: np.ndarray) -> Tensor:
        """Return x (batch, lp + n + li, d) at these places (batch, n): (batch, n, d)."""
        batch, n, d = x.shape
        return ops.embedding(x.reshape(batch * n, d), places + n * np.arange(batch)[:, None])
