"""Views, selection, concatenation, rows of a table, and dropout."""
import math

import numpy as np

from ..backend import asarray, scatter_add, wide, xp
from ..backend.host import mixed
from ..tensor import Tensor, composed, op
from .algebra import rows


@op
def reshape(x, *, shape):
    """x in another shape."""
    before = x.shape
    def dx(g): return g.reshape(before)
    return x.reshape(shape), (dx,)

@op
def transpose(x, *, axes=None):
    """x with its axes in this order (None: reversed)."""
    back = None if axes is None else [list(axes).index(i) for i in range(len(axes))]
    def dx(g): return xp.transpose(g, back)
    return xp.transpose(x, axes), (dx,)

@op
def getitem(x, *, index):
    """x[index] for integers, slices, None and ...; for an array of row numbers use `embedding`."""
    basic = int | np.integer | slice | type(None) | type(...)
    if not all(isinstance(i, basic) for i in (index if isinstance(index, tuple) else (index,))):
        raise ValueError("takes integers, slices, None and ...: for arrays of ids use embedding")
    shape, dtype = x.shape, x.dtype
    def dx(g):
        full = xp.zeros(shape, dtype=dtype)
        full[index] = g
        return full
    return x[index], (dx,)

@op
def concat(*parts, axis=0):
    """The parts, joined along `axis`."""
    ends = np.cumsum([part.shape[axis] for part in parts]).tolist()
    def cut(start, end):
        def dx(g): return g[(slice(None),) * (axis % g.ndim) + (slice(start, end),)]
        return dx
    return xp.concatenate(parts, axis=axis), tuple(map(cut, [0, *ends], ends))

@op
def embedding(W, ids, *, dtype=None):
    """W[ids]: one row per id        W: (n, d)   ids: (...) integers on the host   out: (..., d)
    dtype: of the output, if the table is stored in a narrower one. A slice of rows copies nothing.
    Ids are checked on the host (ValueError), because a GPU would wrap them silently.
    The gradients of equal ids add up.
    """
    (n, d), stored, ids = W.shape, W.dtype, _checked(W, ids)
    def dW(g):
        g = wide(g)
        table = xp.zeros((n, d), dtype=g.dtype)
        if isinstance(ids, slice):
            table[ids] = g
        else:
            scatter_add(table, ids.reshape(-1), rows(g))
        return table
    return W[ids].astype(dtype or stored, copy=False), (dW, None)

def _checked(W, ids):
    """Return ids as an array of the library in use, or a slice as it is, if W has those rows."""
    n = W.shape[0]
    if isinstance(ids, slice):
        return ids
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"embedding: ids must be integers, not {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= n):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise ValueError(f"embedding: id {wrong} is out of range: the table has rows 0 to {n - 1}")
    return asarray(ids)

def dropout_mask(shape, rate, rng, dtype):
    """Return the factors of inverted dropout: 0 with probability `rate`, else 1 / (1 - rate).
    Their mean is 1, so evaluation needs no rescaling. `rng` gives two numbers, a key; a hash of i
    and the key decides about the i-th number. So the mask is computed where x is, and is the same
    on every array library.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout: the rate must be in [0, 1), not {rate}")
    rate = float(rate)
    one, two = rng.integers(1 << 32, size=2).tolist()
    hashed = mixed(xp.arange(math.prod(shape), dtype="uint32"), one, two)
    stays = hashed >= round(rate * (1 << 32))
    return (stays.astype(dtype) * (1 / (1 - rate))).reshape(shape)

@composed
def dropout(x, rate, rng):
    """0 with probability `rate`, else x / (1 - rate), for each number: the expectation is x."""
    return x * Tensor.of(dropout_mask(x.shape, rate, rng, x.dtype)) if rate else x
