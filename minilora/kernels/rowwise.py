"""Row by row or number by number: norms, GELU, SwiGLU, cross-entropy (ops/neural.py) and Adam.

The cores share the rows, in pieces that stay in the cache for an entire formula. On a GPU a formula
is one kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..backend import Array, current, erf, total, wide, xp
from ..backend.fuse import fused
from ..ops.algebra import rows
from ..ops.neural import IGNORED, alike, classes, features


def layer_norm(x: Array, gain: Array, shift: Array, *, eps: float = 1e-5,
               needs: Sequence[bool]) -> Any:
    """One pass over x and one over g. Means are products with a column of 1/d: BLAS is faster than
    `mean`. The normalized rows and one number per row are kept."""
    features(x, gain=gain, shift=shift)
    shape, dtype, d = x.shape, x.dtype, x.shape[-1]
    x = wide(rows(x))  # (rows, d)
    piece, over_d = current().piece // d + 1, xp.full((d, 1), 1 / d, dtype=x.dtype)
    normal, y, rate = xp.empty_like(x), xp.empty_like(x), xp.empty((len(x), 1), dtype=x.dtype)

    def forward(at: slice) -> None:
        x_at, normal_at, y_at, rate_at = x[at], normal[at], y[at], rate[at]
        xp.subtract(x_at, x_at @ over_d, out=normal_at)
        _rate(xp.multiply(normal_at, normal_at, out=y_at) @ over_d, eps, rate_at)
        _scaled(normal_at, rate_at, gain, shift, y_at)

    current().share(forward, len(x), x.size, piece)
    if not (needs[0] or needs[1]):
        del normal

    def dx(g: Array) -> Array:
        out = xp.empty(shape, dtype=normal.dtype)
        into = rows(out)

        def backward(at: slice) -> None:
            scaled = wide(g[at]) * gain
            along = xp.multiply(scaled, normal[at], out=into[at]) @ over_d
            _unscaled(scaled, scaled @ over_d, normal[at], along, rate[at], into[at])

        current().share(backward, len(g), g.size, piece)
        return out.astype(dtype, copy=False)

    def gradients(g: Array) -> tuple[Array | None, ...]:
        g = rows(g)
        dgain = total(g * normal, 0) if needs[1] else None
        return dx(g) if needs[0] else None, dgain, total(g, 0) if needs[2] else None

    return y.reshape(shape).astype(dtype, copy=False), gradients


@fused
def _rate(variance: Array, eps: float, out: Array) -> None:
    """out = 1 / √(variance + eps)"""
    xp.add(variance, eps, out=out)
    xp.sqrt(out, out=out)
    xp.divide(1, out, out=out)


@fused
def _scaled(normal: Array, rate: Array, gain: Array, shift: Array, y: Array) -> None:
    """normal becomes normal · rate;   y = normal · gain + shift"""
    normal *= rate
    xp.multiply(normal, gain, out=y)
    y += shift


@fused
def _unscaled(scaled: Array, mean: Array, normal: Array, along: Array, rate: Array,
              out: Array) -> None:
    """out = (scaled - mean - normal · along) · rate: scaled without its parts along 1 and normal"""
    scaled -= mean
    xp.multiply(normal, along, out=out)
    xp.subtract(scaled, out, out=out)
    out *= rate


def rms_norm(x: Array, gain: Array, *, eps: float = 1e-6, needs: Sequence[bool]) -> Any:
    """As layer_norm; but x itself is kept, which is one pass less, and one number per row."""
    features(x, gain=gain)
    shape, dtype, d, x = x.shape, x.dtype, x.shape[-1], rows(x)
    kind = wide(x[:0]).dtype
    piece, over_d = current().piece // d + 1, xp.full((d, 1), 1 / d, dtype=kind)
    y, rate = xp.empty(x.shape, dtype=kind), xp.empty((len(x), 1), dtype=kind)

    def forward(at: slice) -> None:
        x_at, y_at, rate_at = wide(x[at]), y[at], rate[at]
        _rate(xp.multiply(x_at, x_at, out=y_at) @ over_d, eps, rate_at)
        _rescaled(x_at, rate_at, gain, y_at)

    current().share(forward, len(x), x.size, piece)

    def dx(g: Array) -> Array:
        out = xp.empty(shape, dtype=kind)
        into = rows(out)

        def backward(at: slice) -> None:
            scaled, x_at, rate_at = wide(g[at]) * gain, wide(x[at]), rate[at]
            along = xp.multiply(scaled, x_at, out=into[at]) @ over_d * rate_at * rate_at
            _without(scaled, x_at, along, rate_at, into[at])

        current().share(backward, len(g), g.size, piece)
        return out.astype(dtype, copy=False)

    def gradients(g: Array) -> tuple[Array | None, ...]:
        g = rows(g)
        dgain = total(g * (x * rate), 0) if needs[1] else None
        return dx(g) if needs[0] else None, dgain

    return y.reshape(shape).astype(dtype, copy=False), gradients


@fused
def _rescaled(x: Array, rate: Array, gain: Array, y: Array) -> None:
    """y = x · rate · gain"""
    xp.multiply(x, rate, out=y)
    y *= gain


@fused
def _without(scaled: Array, x: Array, along: Array, rate: Array, out: Array) -> None:
    """out = (scaled - x · along) · rate: scaled without its part along x"""
    xp.multiply(x, along, out=out)
    xp.subtract(scaled, out, out=out)
    out *= rate


def gelu(x: Array, *, approximate: str = "tanh", needs: Sequence[bool]) -> Any:
    """(1 + tanh u) / 2 is 1 / (1 + e^-2u): one e^x, in place. If x requires a gradient, the forward
    pass overwrites Φ with the slope while x is in the cache, so x itself is not kept."""
    if approximate not in _GELU:
        raise ValueError(f'approximate must be "tanh" or "none", not {approximate!r}')
    value, derivative = _GELU[approximate]
    shape, dtype, piece, need = x.shape, x.dtype, current().piece, needs[0]
    x = wide(x.reshape(-1))
    phi, y = xp.empty_like(x), xp.empty_like(x)

    def forward(at: slice) -> None:
        value(x[at], phi[at], y[at])
        if need:
            derivative(x[at], phi[at])

    current().share(forward, len(x), len(x), piece)
    slope = phi.astype(dtype, copy=False) if need else None

    def gradients(g: Array) -> tuple[Array]:
        out = xp.empty(shape, dtype=dtype)
        g, into = g.reshape(-1), out.reshape(-1)

        def part(at: slice) -> None:
            xp.multiply(g[at], slope[at], out=into[at])  # type: ignore[index]

        current().share(part, len(g), len(g), piece)
        return (out,)

    return y.reshape(shape).astype(dtype, copy=False), gradients


@fused
def _gelu_tanh(x: Array, phi: Array, y: Array) -> None:
    """phi = (1 + tanh u) / 2 = 1 / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³);   y = x phi"""
    xp.multiply(x, x, out=phi)
    phi *= -C3
    phi -= C1
    phi *= x  # -2u
    xp.minimum(phi, 80, out=phi)  # e^80 is finite in float32
    xp.exp(phi, out=phi)
    phi += 1
    xp.divide(1, phi, out=phi)
    xp.multiply(x, phi, out=y)


@fused
def _slope_tanh(x: Array, phi: Array) -> None:
    """phi becomes phi + x phi (1 - phi) d(2u)/dx"""
    y = x * x
    y *= 3 * C3
    y += C1
    y *= x
    y *= 1 - phi
    y += 1
    phi *= y


@fused
def _gelu_erf(x: Array, phi: Array, y: Array) -> None:
    """phi = (1 + erf(x / √2)) / 2;   y = x phi"""
    xp.multiply(1 + erf(x * R2), 0.5, out=phi)
    xp.multiply(x, phi, out=y)


@fused
def _slope_erf(x: Array, phi: Array) -> None:
    """phi becomes phi + x e^(-x²/2) / √(2π)"""
    phi += x * xp.exp(x * x * -0.5) * R2PI


R2, R2PI = math.sqrt(1 / 2), 1 / math.sqrt(2 * math.pi)
C1, C3 = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
_GELU = {"tanh": (_gelu_tanh, _slope_tanh), "none": (_gelu_erf, _slope_erf)}


def swiglu(x: Array, y: Array, *, needs: Sequence[bool]) -> Any:
    """As gelu: the forward pass writes both slopes while x and y are in the cache, and they are
    kept in place of x and y."""
    alike(x, y)
    shape, dtype, piece = x.shape, x.dtype, current().piece
    x, y = wide(x.reshape(-1)), wide(y.reshape(-1))
    out, to_x, to_y = xp.empty_like(x), xp.empty_like(x), xp.empty_like(x)

    def forward(at: slice) -> None:
        _swiglu(x[at], y[at], to_x[at], to_y[at], out[at])
        if needs[0]:
            _slope_silu(y[at], to_x[at], to_y[at])

    current().share(forward, len(x), len(x), piece)
    slopes: list[Any] = [z.astype(dtype, copy=False) if need else None
                         for z, need in zip((to_x, to_y), needs)]

    def gradients(g: Array) -> tuple[Array | None, ...]:
        grads = tuple(None if slope is None else xp.empty(shape, dtype=dtype) for slope in slopes)
        g, pairs = g.reshape(-1), [(slope, grad.reshape(-1)) for slope, grad in zip(slopes, grads)
                                   if grad is not None]

        def part(at: slice) -> None:
            for slope, into in pairs:
                xp.multiply(g[at], slope[at], out=into[at])

        current().share(part, len(g), len(g), piece)
        return grads

    return out.reshape(shape).astype(dtype, copy=False), gradients


@fused
def _swiglu(x: Array, y: Array, s: Array, silu: Array, out: Array) -> None:
    """s = 1 / (1 + e^-x);   silu = x s;   out = silu y"""
    xp.negative(x, out=s)
    xp.minimum(s, 80, out=s)  # e^80 is finite in float32
    xp.exp(s, out=s)
    s += 1
    xp.divide(1, s, out=s)
    xp.multiply(x, s, out=silu)
    xp.multiply(silu, y, out=out)


@fused
def _slope_silu(y: Array, s: Array, silu: Array) -> None:
    """s becomes y (s + silu (1 - s))"""
    s *= 1 - silu
    s += silu
    s *= y


def cross_entropy(logits: Array, targets: Any, *, ignore_index: int = IGNORED,
                  needs: Sequence[bool]) -> Any:
    """e^z is computed once, and the gradient is written over it: one array of the logits' size.
    Halves are computed in float32, and so is the loss: scaling it cannot overflow."""
    targets, count = classes(logits, targets, ignore_index)
    shape, dtype, z = logits.shape, logits.dtype, wide(rows(logits))
    weights, targets = (targets >= 0).astype(z.dtype), xp.maximum(targets, 0)  # (rows,) each
    weights *= 1 / count
    each, piece = xp.arange(len(z)), current().piece // z.shape[1] + 1
    e, chosen, total = xp.empty_like(z), xp.empty_like(weights), xp.empty_like(weights)

    def forward(at: slice) -> None:
        top = z[at].max(axis=1, keepdims=True)
        chosen[at] = z[at][each[: len(top)], targets[at]] - top[:, 0]
        exp_shifted(z[at], top, e[at])
        total[at] = e[at].sum(axis=1)

    current().share(forward, len(z), z.size, piece)
    loss = (xp.where(weights > 0, xp.log(total) - chosen, 0) * weights).sum()

    def gradients(g: Array) -> tuple[Array, None]:
        def part(at: slice) -> None:
            e[at] *= (g * weights[at] / total[at])[:, None]

        current().share(part, len(e), e.size, piece)
        e[each, targets] -= g * weights
        return e.reshape(shape).astype(dtype, copy=False), None

    return loss, gradients


@fused
def exp_shifted(x: Array, top: Array, out: Array) -> None:
    """out = e^(x - top)"""
    xp.subtract(x, top, out=out)
    xp.exp(out, out=out)


def adam(p: Array, g: Array, m: Array, v: Array, *, betas: tuple[float, float], rate: float,
         spread: float, eps: float, kept: float) -> None:
    """In place, piece by piece: p, g, m, v and one temporary array stay in the cache. The formula
    in training/adam.py allocates several arrays of p's size."""
    b1, b2 = betas
    rest = b1, 1 - b1, b2, 1 - b2, spread, eps, rate, kept
    if not p.flags.c_contiguous:  # a flat p would be a copy
        _adam(p, g, m, v, *rest)
        return
    flat = [a.reshape(-1) for a in (p, g, m, v)]

    def part(at: slice) -> None:
        _adam(*(a[at] for a in flat), *rest)

    current().share(part, len(flat[0]), len(flat[0]), current().piece)


@fused
def _adam(p, g, m, v, b1, c1, b2, c2, spread, eps, rate, kept):
    p *= kept
    m *= b1
    m += g * c1
    v *= b2
    work = g * g
    work *= c2
    v += work
    xp.sqrt(v, out=work)
    work *= spread
    work += eps
    xp.divide(m, work, out=work)
    work *= rate
    p -= work
