"""Arithmetic, elementwise functions, sums and matrix products.

In every op, arrays are positional, settings are keywords, and the rules are in the order of the
arrays. A rule closes over exactly the arrays that it uses: they are what the tape keeps.
"""
import math

from ..backend import dequantised, like, total, wide, xp
from ..tensor import op


def rows(x):
    """Return x as a matrix: (..., k) -> (rows, k)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])

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
    """Natural logarithm, elementwise."""
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
    """max(x, 0) elementwise; the gradient at 0 is 0."""
    positive = x > 0
    def dx(g): return g * positive
    return xp.maximum(x, 0), (dx,)

@op
def sigmoid(x):
    """1 / (1 + e⁻ˣ) elementwise."""
    e = xp.exp(-abs(x))                                           # at most 1: no overflow
    y = xp.where(x < 0, e, 1) / (1 + e)
    def dx(g): return g * y * (1 - y)
    return y, (dx,)

@op
def power(x, *, exponent):
    """xⁿ elementwise, for a number n."""
    if not isinstance(exponent, int | float):
        raise ValueError(f"the exponent is a number, not {exponent!r}: x**y is exp(y * log(x))")
    def dx(g): return g * (exponent * x ** (exponent - 1)) if exponent else g * 0
    return x ** exponent, (dx,)

@op
def sum(x, *, axis=None, keepdims=False):
    """Sum over `axis` (None: over all axes), which is dropped, or has length 1 with keepdims."""
    shape, y = x.shape, total(x, axis, keepdims=True)
    kept = y.shape                                                # the summed axes have length 1
    def dx(g): return xp.broadcast_to(g.reshape(kept), shape)
    return like(x, y if keepdims else xp.squeeze(y, axis=axis)), (dx,)

@op
def mean(x, *, axis=None, keepdims=False):
    """Mean over `axis`, as for `sum`. ValueError for an empty x."""
    if x.size == 0:
        raise ValueError("the mean of an empty array is not defined")
    shape, y = x.shape, total(x, axis, keepdims=True)
    kept, n = y.shape, x.size // y.size                           # n numbers in each mean
    def dx(g): return xp.broadcast_to(wide(g).reshape(kept) / n, shape)
    return like(x, (y if keepdims else xp.squeeze(y, axis=axis)) / n), (dx,)

@op
def max(x, *, axis=None, keepdims=False):
    """Maximum over `axis`, as for `sum`. Equal maxima share the gradient."""
    y = x.max(axis=axis, keepdims=True)
    top = x == y
    def dx(g): return g.reshape(y.shape) * (top / total(top, axis, keepdims=True))
    return (y if keepdims else xp.squeeze(y, axis=axis)), (dx,)

@op
def matmul(x, y):
    """x @ y        x: (..., n, k)   y: (..., k, m)   out: (..., n, m); leading axes broadcast"""
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError("needs (..., n, k) and (..., k, m) with the same k")
    def dx(g): return g @ y.swapaxes(-1, -2)                      # (..., n, k)
    def dy(g): return x.swapaxes(-1, -2) @ g                      # (..., k, m)
    return x @ y, (dx, dy)

@op
def linear(x, W, b=None):
    """y = x Wᵀ + b        x: (..., k)   W: (d, k)   b: (d,) or None   y: (..., d)"""
    fits(x, W)
    def dx(g): return g @ W                                       # (..., k)
    def dW(g): return rows(g).T @ rows(x)                         # (d, k)
    def db(g): return total(rows(g), 0)                           # (d,)
    return (x @ W.T if b is None else x @ W.T + b), (dx, dW, db)

@op
def quantised_linear(x, codes, scales, values, b=None, *, shape):
    """y = x Wᵀ + b, with W = values[codes] · scales: QLoRA, equation 5 (Dettmers et al. 2023)
    x: (..., k)   codes: (blocks, bytes)   scales: (blocks, 1)   values: (256, codes in a byte)
    shape: that of W, (d, k)   b: (d,) or None   y: (..., d). The tape keeps the codes, and not W.
    """
    dtype = x.dtype
    def W(): return dequantised(codes, scales, values, shape).astype(dtype, copy=False)
    fits(x, w := W())
    def dx(g): return g @ W()                                     # (..., k)
    def db(g): return total(rows(g), 0)                           # (d,)
    return (x @ w.T if b is None else x @ w.T + b), (dx, None, None, None, db)

@op
def lora_linear(x, W, b, A, B, mask=None, *, scale):
    """y = x Wᵀ + b + scale · (x∘mask) Aᵀ Bᵀ        §4.1, equation 3: W0 x + BA x
    x: (..., k)   W: (d, k)   b: (d,) or None   A: (r, k)   B: (d, r)   mask: like x, or None
    """
    fits(x, W)
    h = x if mask is None else x * mask                           # (..., k)
    z = h @ A.T                                                   # (..., r)
    y = x @ W.T + scale * (z @ B.T)                               # (..., d)
    def dz(g): return scale * (g @ B)                             # (..., r)
    def dx(g): return g @ W + (dz(g) @ A if mask is None else dz(g) @ A * mask)
    def dW(g): return rows(g).T @ rows(x)                         # (d, k)
    def db(g): return total(rows(g), 0)                           # (d,)
    def dA(g): return rows(dz(g)).T @ rows(h)                     # (r, k)
    def dB(g): return scale * rows(g).T @ rows(z)                 # (d, r)
    return (y if b is None else y + b), (dx, dW, db, dA, dB, None)

def fits(x, W):
    """Raise ValueError unless x is (..., k) and W is (d, k)."""
    if W.ndim != 2 or x.ndim < 1 or x.shape[-1] != W.shape[1]:
        raise ValueError(f"x has {x.shape[-1] if x.ndim else 0} features, W takes {W.shape[-1]}")
