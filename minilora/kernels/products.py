"""Products of matrices: `linear` and `lora_linear` (ops/algebra.py), shared by the cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Array, current, xp
from ..ops.algebra import fits, rows


def product(x: Array, W: Array, add: Callable[..., None] | None = None) -> Array:
    """x W, shared among the cores; add(y[at], *at) puts something on top of each part.

    x: (..., k)   W: (k, d)   out: (..., d). The longer side of the result is cut, because each core
    has to read the other factor whole. A W that is stored narrower than x is widened first; for an
    x in half precision, W is rounded to that.
    """
    lead, (k, d) = x.shape[:-1], W.shape
    half = x.dtype.itemsize == 2
    dtype = x.dtype if half or x.dtype == W.dtype else xp.result_type(x, W)
    out, x, W = xp.empty((*lead, d), dtype), rows(x), widened(W, dtype)
    n, y = len(x), out.reshape(len(x), d)

    def part(cut: slice) -> None:
        at = (cut, slice(None)) if n >= d else (slice(None), cut)
        xp.matmul(x[at[0]], W[:, at[1]], out=y[at])
        if add is not None:
            add(y[at], *at)

    current().share(part, max(n, d), n * k * d >> 6)
    return out


def widened(W: Array, dtype: Any) -> Array:
    """W in a wider dtype, exactly, in the same order of memory; W itself where it has that dtype.

    NumPy casts halves one by one. All at once is several times as fast: in the place of a float32's
    bits, a half's exponent is 112 too small. By way of 2¹²⁸, what is not finite stays so.
    """
    if W.dtype == dtype:
        return W
    if W.dtype != "float16" or not current().on_host:
        return W.astype(dtype, copy=False)
    bits = W.view("int16").astype("int32")
    bits <<= 13
    bits &= -0x70000001  # of four copies of the sign, one
    wide = bits.view("float32")
    for power in (127, 97, -112):
        wide *= 2.0**power
    return wide.astype(dtype, copy=False)


def summed(g: Array) -> Array:
    """Σ of the rows; of halves in float32, because in halves 2048 + 1 is 2048."""
    wide = g.dtype if g.dtype.itemsize > 2 else "float32"
    return g.sum(axis=0, dtype=wide).astype(g.dtype, copy=False)


def linear(x: Array, W: Array, b: Array | None = None, *, needs: Sequence[bool]) -> Any:
    """Each core makes some rows or columns of y, and adds b while they are in its cache."""
    fits(x, W)

    def plus_b(y: Array, some: slice, columns: slice) -> None:
        y += b[columns]  # type: ignore[index]

    y = product(x, W.T, None if b is None else plus_b)
    x, W = x if needs[1] else None, W if needs[0] else None

    def gradients(g: Array) -> tuple[Array | None, ...]:
        dx = product(g, W) if needs[0] else None
        dW = product(rows(g).T, rows(x)) if needs[1] else None
        return dx, dW, summed(rows(g)) if needs[2] else None

    return y, gradients


def lora_linear(
    x: Array, W: Array, b: Array | None, A: Array, B: Array, mask: Array | None = None, *,
    scale: float, needs: Sequence[bool],
) -> Any:
    """The update is added to each core's part of x Wᵀ, and of g W, while that is in its cache: no
    array as large as y but y itself. Of x and of x Aᵀ only what dA and dB need is kept."""
    fits(x, W)
    if x.dtype.itemsize == 2:  # a half meets A and B as halves
        A, B = A.astype(x.dtype, copy=False), B.astype(x.dtype, copy=False)
    need_x, need_W, need_b, need_A, need_B, need_mask = needs
    if need_mask:
        raise TypeError("lora_linear: the mask is a constant: no gradient is defined for it")
    masked, up = rows(x if mask is None else x * mask), B.T * scale
    inner = xp.empty((len(masked), len(A)), up.dtype)

    def plus_update(y: Array, some: slice, columns: slice) -> None:
        narrow = masked[some] @ A.T
        inner[some] = narrow  # from every thread the same; none reads what another is writing
        y += narrow @ up[:, columns]
        if b is not None:
            y += b[columns]

    y = product(x, W.T, plus_update)
    x, masked, inner = (kept if need else None for kept, need in
                        ((x, need_W), (masked, need_A), (inner, need_B)))
    W, mask, b = W if need_x else None, mask if need_x else None, None

    def gradients(g: Array) -> tuple[Array | None, ...]:
        through, dA, dB = _thin(rows(g), B * scale, masked, inner)

        def plus_through(dx: Array, some: slice, columns: slice) -> None:
            back = through[some] @ A[:, columns]
            if mask is not None:
                back *= rows(mask)[some, columns]
            dx += back

        return (
            product(g, W, plus_through) if need_x else None,
            product(rows(g).T, rows(x)) if need_W else None,
            summed(rows(g)) if need_b else None,
            dA,
            None if dB is None else dB * scale,
            None,
        )

    return y, gradients


def _thin(g: Array, B: Array, h: Array | None, z: Array | None) -> tuple[Any, Any, Any]:
    """(g B, (g B)ᵀ h, gᵀ z), None for None: products that cost little but the reading of g, which
    is read once for all three, in blocks of rows."""
    side = 256 if current().on_host else len(g) + 1
    blocks = [slice(i, i + side) for i in range(0, len(g), side)]
    through = xp.empty((len(g), B.shape[1]), g.dtype)
    dA = None if h is None else xp.empty((len(blocks), B.shape[1], h.shape[1]), g.dtype)
    dB = None if z is None else xp.empty((len(blocks), g.shape[1], z.shape[1]), g.dtype)

    def part(at: slice) -> None:
        for i, some in enumerate(blocks[at], at.start):
            xp.matmul(g[some], B, out=through[some])
            if dA is not None and h is not None:
                xp.matmul(through[some].T, h[some], out=dA[i])
            if dB is not None and z is not None:
                xp.matmul(g[some].T, z[some], out=dB[i])

    current().share(part, len(blocks), g.size)
    dA, dB = (None if each is None else each.sum(axis=0) for each in (dA, dB))
    return through, dA, dB
