"""Moving numbers about: views, selection, rows of a table, and dropout."""
import math

import numpy as np

from ..backend import asarray, scatter_add, xp
from ..backend.host import mixed
from ..tensor import composed, op
from .algebra import rows


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

@op
def embedding(W, ids, *, dtype=None):
    """W[ids]: a row for each id        W: (n, d)   ids: (...) integers, NumPy   out: (..., d)
    dtype: of the rows, where the table is stored narrower. A slice of rows copies nothing.
    Ids are checked on the host (ValueError), because a GPU would wrap them silently.
    Equal ids add up in the gradient.
    """
    (n, d), stored, ids = W.shape, W.dtype, _rows_of(W, ids)
    def dW(g):
        table = xp.zeros((n, d), stored)
        if isinstance(ids, slice):
            table[ids] = g
        else:
            scatter_add(table, ids.reshape(-1), rows(g).astype(stored, copy=False))
        return table
    return W[ids].astype(dtype or stored, copy=False), (dW, None)

def _rows_of(W, ids):
    n = W.shape[0]
    if isinstance(ids, slice):
        return ids
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids must be integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"embedding: id {bad} is out of range: the table has rows 0 to {n - 1}")
    return asarray(ids)

def dropout_mask(shape, rate, rng, dtype):
    """What inverted dropout multiplies by: 0 with probability `rate`, else 1 / (1 - rate).
    The mean is 1, so nothing has to be rescaled afterwards. From `rng` come two numbers, a key; the
    fate of the i-th number is a hash of i and the key. So a mask is made where x is, and is the
    same on every array library and with any number of threads.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate must be in [0, 1), not {rate}")
    one, two = rng.integers(1 << 32, size=2).tolist()
    hashed = mixed(xp.arange(math.prod(shape), dtype="uint32"), one, two)
    kept = hashed >= round(rate * (1 << 32))
    return (kept.astype(dtype) * (1 / (1 - rate))).reshape(shape)

@composed
def dropout(x, rate, rng):
    """Each number of x is 0 with probability `rate`, else x / (1 - rate): the same expectation."""
    return x * dropout_mask(x.shape, rate, rng, x.dtype) if rate else x
