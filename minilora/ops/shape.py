"""Moving numbers about: views, selection, rows of a table, and dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Array, asarray, current, fused, scatter_add, xp
from ..tensor import Tensor, op
from ..threads import share
from .algebra import rows, widened


@op
def reshape(x, *, shape):
    """The same numbers in another shape."""
    before = x.shape
    def dx(g): return g.reshape(before)
    return x.reshape(shape), (dx,)


@op
def transpose(x, *, axes=None):
    """x with its axes in another order (None: reversed)."""
    back = None if axes is None else [list(axes).index(i) for i in range(len(axes))]
    def dx(g): return xp.transpose(g, back)
    return xp.transpose(x, axes), (dx,)


@op
def getitem(x, *, index):
    """x[index] for integers, slices, None and ...; to gather rows by number use `embedding`."""
    basic = int | np.integer | slice | type(None) | type(...)
    if not all(isinstance(i, basic) for i in (index if isinstance(index, tuple) else (index,))):
        raise ValueError("takes integers, slices, None and ...: for arrays of ids use embedding")
    shape, dtype = x.shape, x.dtype
    def dx(g):
        whole = xp.zeros(shape, dtype)
        whole[index] = g
        return whole
    return x[index], (dx,)


@op
def concat(*parts, axis=0):
    """The parts one after the other along `axis`."""
    ends = np.cumsum([part.shape[axis] for part in parts]).tolist()
    def cut(start, end):
        def dx(g): return g[(slice(None),) * (axis % g.ndim) + (slice(start, end),)]
        return dx
    return xp.concatenate(parts, axis), tuple(map(cut, [0, *ends], ends))


def embedding(W: Any, ids: Any, dtype: Any = None) -> Tensor:
    """W[ids]: a row for each id        W: (n, d)   ids: (...) integers, NumPy   out: (..., d)

    dtype: of the rows, where the table is stored narrower. A slice of rows copies nothing.
    Ids are checked on the host (ValueError), because a GPU would wrap them silently.
    Equal ids add up in the gradient.
    """
    n = W.shape[0]
    if isinstance(ids, slice):
        return take(W, ids=slice(*ids.indices(n)), dtype=dtype)
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids must be integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"embedding: id {bad} is out of range: the table has rows 0 to {n - 1}")
    return take(W, ids=asarray(ids), dtype=dtype)


@op
def take(W, *, ids, dtype=None):
    """W[ids] with ids that are known to be good, on the device."""
    shape, stored = W.shape, W.dtype
    def dW(g):
        table = xp.zeros(shape, stored)
        if isinstance(ids, slice):
            table[ids] = g
        else:
            scatter_add(table, ids.reshape(-1), rows(g).astype(stored, copy=False))
        return table
    return widened(W[ids], dtype or stored), (dW,)


def keep_mask(shape: Sequence[int], rate: float, rng: np.random.Generator, dtype: Any) -> Array:
    """What inverted dropout multiplies by: 0 with probability `rate`, else 1 / (1 - rate).

    The mean is 1, so nothing has to be rescaled afterwards. From `rng` come two numbers, a key; the
    fate of the i-th number is a hash of i and the key. So a mask is made where x is, and is the
    same on every array library and with any number of threads.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate must be in [0, 1), not {rate}")
    mask = xp.empty(math.prod(shape), dtype)
    key = (*rng.integers(1 << 32, size=2).tolist(), round(rate * (1 << 32)), 1 / (1 - rate))
    def part(at): _mask(xp.arange(at.start, at.stop, dtype="uint32"), *key, mask[at])
    share(part, len(mask), len(mask), current().piece)
    return mask.reshape(shape)


@fused
def _mask(i, one, two, limit, worth, out):
    """worth, where a 32-bit hash of i is not below the limit, else 0: after the finalizer of
    MurmurHash3 (Appleby), a bijection that spreads every bit, keyed twice."""
    i ^= one
    i *= 0x85EBCA6B
    i ^= i >> 13
    i ^= two
    i *= 0xC2B2AE35
    i ^= i >> 16
    i *= 0x85EBCA6B
    xp.greater_equal(i, limit, out=out)
    out *= worth


def dropout(x: Tensor, rate: float, rng: np.random.Generator) -> Tensor:
    """Each number of x is 0 with probability `rate`, else x / (1 - rate): the same expectation."""
    return x * keep_mask(x.shape, rate, rng, x.dtype) if rate else x
