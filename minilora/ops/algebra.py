"""Arithmetic, elementwise functions, sums and matrix products.

In every op: arrays are positional, settings are keywords, and the rules come in the order of the
arrays. A rule closes over exactly what it needs; that is what the tape keeps.
"""

import math

from ..backend import Array, current, xp
from ..tensor import Early, once, op
from ..threads import share


def rows(x):
    """x as a matrix: (..., k) -> (rows, k)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def widened(W, dtype):
    """W in a wider dtype, exactly, in the same order of memory; W itself where it has that dtype.

    NumPy casts halves one by one. All at once is several times as fast: in the place of a float32's
    bits, a half's exponent is 112 too small. By way of 2¹²⁸, what is not finite stays so.
    """
    if W.dtype == dtype or W.dtype != "float16" or not current().numbers_are_free:
        return W.astype(dtype, copy=False)
    bits = W.view("int16").astype("int32")
    bits <<= 13
    bits &= -0x70000001                                           # of four copies of the sign, one
    wide = bits.view("float32")
    for power in (127, 97, -112):
        wide *= 2.0**power
    return wide.astype(dtype, copy=False)


def product(x, W, add=None):
    """x W, shared among the cores; add(y[at], *at) puts something on top of each part.

    x: (..., k)   W: (k, d)   out: (..., d). The longer side of the result is cut, because each core
    has to read the other factor whole. A W that is stored narrower than x is widened first; for an
    x in half precision, W is rounded to that.
    """
    lead, (k, d) = x.shape[:-1], W.shape
    dtype = x.dtype if x.dtype.itemsize == 2 else xp.result_type(x, W)
    out, x, W = xp.empty((*lead, d), dtype), rows(x), widened(W, dtype)
    n, y = len(x), out.reshape(len(x), d)
    def part(cut):
        at = (cut, slice(None)) if n >= d else (slice(None), cut)
        xp.matmul(x[at[0]], W[:, at[1]], out=y[at])
        if add is not None:
            add(y[at], *at)
    share(part, max(n, d), n * k * d >> 6)
    return out


@op
def add(x, y):
    """x + y, broadcast."""
    def dx(g): return g
    def dy(g): return g
    return x + y, (dx, dy)


@op
def sub(x, y):
    """x - y, broadcast."""
    def dx(g): return g
    def dy(g): return -g
    return x - y, (dx, dy)


@op
def mul(x, y):
    """x · y elementwise, broadcast."""
    def dx(g): return g * y
    def dy(g): return g * x
    return x * y, (dx, dy)


@op
def div(x, y):
    """x / y elementwise, broadcast."""
    out = x / y
    def dx(g): return g / y
    def dy(g): return -g * out / y
    return out, (dx, dy)


@op
def neg(x):
    """-x"""
    def dx(g): return -g
    return -x, (dx,)


@op
def exp(x):
    """eˣ elementwise."""
    y = xp.exp(x)
    def dx(g): return g * y
    return y, (dx,)


@op
def log(x):
    """The natural logarithm, elementwise."""
    def dx(g): return g / x
    return xp.log(x), (dx,)


@op
def sqrt(x):
    """√x elementwise."""
    y = xp.sqrt(x)
    def dx(g): return g / (2 * y)
    return y, (dx,)


@op
def tanh(x):
    """tanh elementwise."""
    y = xp.tanh(x)
    def dx(g): return g * (1 - y * y)
    return y, (dx,)


@op
def relu(x):
    """max(x, 0) elementwise; its gradient at 0 is 0."""
    positive = x > 0
    def dx(g): return g * positive
    return xp.maximum(x, 0), (dx,)


@op
def sum(x, *, axis=None):
    """The sum over `axis` (None: over everything), which is dropped."""
    shape, total = x.shape, x.sum(axis=axis, keepdims=True)
    kept = total.shape
    def dx(g): return xp.broadcast_to(g.reshape(kept), shape)
    return xp.squeeze(total, axis=axis), (dx,)


@op
def mean(x, *, axis=None):
    """The mean over `axis` (None: over everything), which is dropped."""
    shape, total = x.shape, x.sum(axis=axis, keepdims=True)
    if x.size == 0:
        raise ValueError("the mean of nothing is not defined")
    kept, n = total.shape, x.size // total.size
    def dx(g): return xp.broadcast_to(g.reshape(kept) / n, shape)
    return xp.squeeze(total, axis=axis) / n, (dx,)


@op
def matmul(x, y):
    """x @ y        x: (..., n, k)   y: (..., k, m)   out: (..., n, m); leading axes broadcast"""
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError("needs (..., n, k) and (..., k, m) with the same k")
    def dx(g): return g @ y.swapaxes(-1, -2)
    def dy(g): return x.swapaxes(-1, -2) @ g
    return x @ y, (dx, dy)


@op
def linear(x, W, b=None):
    """y = x Wᵀ + b        x: (..., k)   W: (d, k)   b: (d,)   y: (..., d)"""
    _fits(x, W)
    def plus_b(y, rows, columns): y += b[columns]
    def dx(g): return product(g, W)
    def dW(g): return product(rows(g).T, rows(x))
    def db(g): return rows(g).sum(axis=0)
    return product(x, W.T, None if b is None else plus_b), (dx, dW, db)


@op
def lora_linear(x, W, b, A, B, mask=None, *, scale):
    """y = x Wᵀ + b + scale · (x∘mask) Aᵀ Bᵀ        §4.1, equation 3: W0 x + BA x

    x: (..., k)   W: (d, k)   b: (d,) or None   A: (r, k)   B: (d, r)   mask: like x, or None
    """
    _fits(x, W)
    if x.dtype.itemsize == 2:                                     # a half meets A and B as halves
        A, B = A.astype(x.dtype, copy=False), B.astype(x.dtype, copy=False)
    masked = rows(x if mask is None else x * mask)
    n, (d, r), up = len(masked), B.shape, B.T * scale
    inner = xp.empty((n, r), up.dtype)                            # all that dB needs
    def plus_update(y, some, columns):
        narrow = xp.matmul(masked[some], A.T, out=inner[some])    # the same from every thread
        y += narrow @ up[:, columns]
        if b is not None:
            y += b[columns]
    y = product(x, W.T, plus_update)

    asked: dict[str, Array] = {}                                  # what the kept rules need
    @once
    def together(g):                                              # one pass over g for all three
        g = rows(g)
        side = current().rows
        blocks = [slice(i, i + side) for i in range(0, n, side)]
        down = xp.empty((n, r), g.dtype)                          # g B · scale
        dA, dB = xp.empty((len(blocks), *A.shape), g.dtype), xp.empty((len(blocks), d, r), g.dtype)
        def part(at):
            for i, some in enumerate(blocks[at], at.start):
                xp.matmul(g[some], B * scale, out=down[some])
                if "A" in asked:
                    xp.matmul(down[some].T, asked["A"][some], out=dA[i])
                if "B" in asked:
                    xp.matmul(g[some].T, asked["B"][some], out=dB[i])
        share(part, len(blocks), g.size)
        return down, dA, dB                                       # what was not asked for is empty
    def dx(g):
        narrow = together(g)[0]
        def plus_update(y, some, columns):
            through = narrow[some] @ A[:, columns]
            if mask is not None:
                through *= rows(mask)[some, columns]
            y += through
        return product(g, W, plus_update)
    def dW(g): return product(rows(g).T, rows(x))
    def db(g): return rows(g).sum(axis=0)
    def dA(g, _): return together(g)[1].sum(axis=0)
    def dB(g, _): return together(g)[2].sum(axis=0) * scale
    early = Early(lambda: asked.update(A=masked), dA), Early(lambda: asked.update(B=inner), dB)
    return y, (dx, dW, db, *early)


def _fits(x, W):
    if W.ndim != 2 or x.ndim < 1 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"x has {x.shape[-1] if x.ndim else 0} features, W takes {W.shape[-1]}")
