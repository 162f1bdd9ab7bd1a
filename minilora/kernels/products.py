"""Products of matrices: `linear` and `lora_linear` (ops/algebra.py), shared by the cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..backend import Array, current, dequantised, total, xp
from ..ops.algebra import fits, rows


def product(x: Array, W: Array, add: Callable[..., None] | None = None) -> Array:
    """Return x W, shared by the cores        x: (..., k)   W: (k, d)   out: (..., d)

    add: a function (part, rows, columns) that adds to each part of the result while that is in the
    cache. The longer side of the result is cut, because each core has to read all of the other
    factor. If W is stored in a narrower dtype than x it is widened; if x is in half precision, W is
    rounded to it.
    """
    lead, (k, d) = x.shape[:-1], W.shape
    half = x.dtype.itemsize == 2
    dtype = x.dtype if half or x.dtype == W.dtype else xp.result_type(x, W)
    out, x, W = xp.empty((*lead, d), dtype=dtype), rows(x), widened(W, dtype)
    n, y = len(x), out.reshape(len(x), d)  # (rows, d)

    def part(cut: slice) -> None:
        at = (cut, slice(None)) if n >= d else (slice(None), cut)
        xp.matmul(x[at[0]], W[:, at[1]], out=y[at])
        if add is not None:
            add(y[at], *at)

    current().share(part, max(n, d), n * k * d >> 6)
    return out


def widened(W: Array, dtype: Any) -> Array:
    """Return W in a wider dtype, exact, in the same memory order; W itself if it has that dtype.

    NumPy casts halves one at a time. Working on the bits of the entire array is several times as
    fast: moved to the bits of a float32, a half's exponent is 112 too small. The multiplications
    pass 2¹²⁸, so that inf and nan stay what they are.
    """
    if W.dtype == dtype:
        return W
    if W.dtype != "float16" or not current().on_host:
        return W.astype(dtype, copy=False)
    bits = W.view("int16").astype("int32")
    bits <<= 13
    bits &= -0x70000001  # the shift left four copies of the sign: keep one
    wide = bits.view("float32")
    for power in (127, 97, -112):
        wide *= 2.0**power
    return wide.astype(dtype, copy=False)


def linear(x: Array, W: Array, b: Array | None = None, *, needs: Sequence[bool]) -> Any:
    """Each core computes some rows or columns of y, and adds b while they are in its cache."""
    fits(x, W)

    def plus_b(y: Array, some: slice, columns: slice) -> None:
        y += b[columns]  # type: ignore[index]

    y = product(x, W.T, None if b is None else plus_b)
    x, W = x if needs[1] else None, W if needs[0] else None

    def gradients(g: Array) -> tuple[Array | None, ...]:
        dx = product(g, W) if needs[0] else None
        dW = product(rows(g).T, rows(x)) if needs[1] else None
        return dx, dW, total(rows(g), 0) if needs[2] else None

    return y, gradients


def quantised_linear(
    x: Array, codes: Array, scales: Array, values: Array, b: Array | None = None, *,
    shape: tuple[int, int], needs: Sequence[bool],
) -> Any:
    """The kernel of `linear`, which is given W for each product, and does not keep it."""

    def W() -> Array:
        return dequantised(codes, scales, values, shape)

    y, of_b = linear(x, W(), b, needs=(False, False, needs[4]))

    def gradients(g: Array) -> tuple[Array | None, ...]:
        dx = product(g, W()) if needs[0] else None
        return dx, None, None, None, of_b(g)[2]

    return y, gradients


def lora_linear(
    x: Array, W: Array, b: Array | None, A: Array, B: Array, mask: Array | None = None, *,
    scale: float, needs: Sequence[bool],
) -> Any:
    """The update is added to each core's part of x Wᵀ, and of g W, while that is in its cache, so
    there is no second array of y's size. x and x Aᵀ are kept only if dA or dB needs them."""
    fits(x, W)
    if x.dtype.itemsize == 2:  # a half meets A and B as halves
        A, B = A.astype(x.dtype, copy=False), B.astype(x.dtype, copy=False)
    need_x, need_W, need_b, need_A, need_B, need_mask = needs
    if need_mask:
        raise TypeError("lora_linear: the mask is a constant, it has no gradient: detach() it")
    h, up = rows(x if mask is None else x * mask), B.T * scale  # (rows, k), (r, d)
    z = xp.empty((len(h), len(A)), dtype=up.dtype)  # (rows, r)

    def plus_update(y: Array, some: slice, columns: slice) -> None:
        inner = h[some] @ A.T
        z[some] = inner  # threads may write the same numbers here; none reads them now
        y += inner @ up[:, columns]
        if b is not None:
            y += b[columns]

    y = product(x, W.T, plus_update)
    x, h, z = (array if need else None for array, need in ((x, need_W), (h, need_A), (z, need_B)))
    W, mask, b = W if need_x else None, mask if need_x else None, None

    def gradients(g: Array) -> tuple[Array | None, ...]:
        dz, dA, dB = _thin(rows(g), B * scale, h, z)

        def plus_update(dx: Array, some: slice, columns: slice) -> None:
            dh = dz[some] @ A[:, columns]
            if mask is not None:
                dh *= rows(mask)[some, columns]
            dx += dh

        return (
            product(g, W, plus_update) if need_x else None,
            product(rows(g).T, rows(x)) if need_W else None,
            total(rows(g), 0) if need_b else None,
            dA,
            None if dB is None else dB * scale,
            None,
        )

    return y, gradients


def _thin(g: Array, B: Array, h: Array | None, z: Array | None) -> tuple[Any, Any, Any]:
    """Return (g B, (g B)ᵀ h, gᵀ z); None for a missing h or z. B, h and z are thin, so reading g is
    the main cost: it is read once for all three, in blocks of rows."""
    side = 256 if current().on_host else len(g) + 1
    blocks = [slice(i, i + side) for i in range(0, len(g), side)]
    dz = xp.empty((len(g), B.shape[1]), dtype=g.dtype)  # (rows, r)
    dA = None if h is None else xp.empty((len(blocks), B.shape[1], h.shape[1]), dtype=g.dtype)
    dB = None if z is None else xp.empty((len(blocks), g.shape[1], z.shape[1]), dtype=g.dtype)

    def part(at: slice) -> None:
        for i, some in enumerate(blocks[at], at.start):
            xp.matmul(g[some], B, out=dz[some])
            if dA is not None and h is not None:
                xp.matmul(dz[some].T, h[some], out=dA[i])
            if dB is not None and z is not None:
                xp.matmul(g[some].T, z[some], out=dB[i])

    current().share(part, len(blocks), g.size)
    dA, dB = (None if each is None else total(each, 0) for each in (dA, dB))
    return dz, dA, dB
