"""Whole formulas as one op: faster and leaner than composing them, and each equal to its composed
twin (in the tests). The gradients are those of the usual derivations, written once, here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import asarray, current, erf, fused, xp
from ..tensor import Early, Tensor, op
from ..threads import share
from .algebra import rows


@op
def softmax(x, *, axis=-1):
    """eˣ / Σ eˣ along `axis`; large logits are safe."""
    y = xp.empty_like(x)
    exp_shifted(x, x.max(axis=axis, keepdims=True), y)
    y /= y.sum(axis=axis, keepdims=True)
    def dx(g):
        gy = g * y
        gy -= y * gy.sum(axis=axis, keepdims=True)
        return gy
    return y, (dx,)


@fused
def exp_shifted(x, top, out):
    """e^(x - top)"""
    xp.subtract(x, top, out=out)
    xp.exp(out, out=out)


@op
def log_softmax(x, *, axis=-1):
    """x - log Σ eˣ along `axis`."""
    y = x - x.max(axis=axis, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
    def dx(g): return g - xp.exp(y) * g.sum(axis=axis, keepdims=True)
    return y, (dx,)


@op
def layer_norm(x, gain, shift, *, eps=1e-5):
    """(x - mean) / √(variance + eps) · gain + shift, over the last axis        x: (..., d)"""
    shape, d = x.shape, x.shape[-1]
    if gain.shape != (d,) or shift.shape != (d,):
        raise ValueError(f"x has {d} features, gain and shift must be ({d},)")
    x, dtype = widest(rows(x)), x.dtype
    piece, over_d = current().piece // d + 1, xp.full((d, 1), 1 / d, x.dtype)
    normal, y, rate = xp.empty_like(x), xp.empty_like(x), xp.empty((len(x), 1), x.dtype)
    def forward(at):                                              # a mean is a product with over_d
        xp.subtract(x[at], x[at] @ over_d, out=normal[at])
        _rate(xp.multiply(normal[at], normal[at], out=y[at]) @ over_d, eps, rate[at])
        _scaled(normal[at], rate[at], gain, shift, y[at])
    share(forward, len(x), x.size, piece)
    def dx(g):
        grad = xp.empty(shape, normal.dtype)
        g, out = rows(g), rows(grad)
        def backward(at):
            scaled = widest(g[at]) * gain
            along = xp.multiply(scaled, normal[at], out=out[at]) @ over_d
            _unscaled(scaled, scaled @ over_d, normal[at], along, rate[at], out[at])
        share(backward, len(g), g.size, piece)
        return grad.astype(dtype, copy=False)
    def dgain(g): return (rows(g) * normal).sum(axis=0)
    def dshift(g): return rows(g).sum(axis=0)
    return y.reshape(shape).astype(dtype, copy=False), (dx, dgain, dshift)


def widest(x):
    """x, or what a half cannot hold (squares, sums, e^x) in float32."""
    return x.astype(x.dtype if x.dtype.itemsize > 2 else "float32", copy=False)


@fused
def _rate(variance, eps, out):
    xp.add(variance, eps, out=out)
    xp.sqrt(out, out=out)
    xp.divide(1, out, out=out)


@fused
def _scaled(normal, rate, gain, shift, y):
    normal *= rate
    xp.multiply(normal, gain, out=y)
    y += shift


@fused
def _unscaled(scaled, mean, normal, along, rate, out):
    """(scaled - mean - normal · along) · rate: without its parts along 1 and along normal"""
    scaled -= mean
    xp.multiply(normal, along, out=out)
    xp.subtract(scaled, out, out=out)
    out *= rate


@op
def gelu(x, *, form="tanh"):
    """x · Φ(x): `form` "erf" is exact, "tanh" GPT-2's approximation (Hendrycks & Gimpel 2016)."""
    if form not in _GELU:
        raise ValueError(f'form must be "tanh" or "erf", not {form!r}')
    value, derivative = _GELU[form]
    shape, dtype, piece = x.shape, x.dtype, current().piece
    x = widest(x.reshape(-1))
    phi, y = xp.empty_like(x), xp.empty_like(x)
    def forward(at): value(x[at], phi[at], y[at])
    share(forward, len(x), len(x), piece)
    def slope():                                                  # in phi's own memory
        def part(at): derivative(x[at], phi[at])
        share(part, len(x), len(x), piece)
        return phi.reshape(shape).astype(dtype, copy=False)
    def dx(g, slope):
        out, g, slope = xp.empty_like(slope), g.reshape(-1), slope.reshape(-1)
        def part(at): xp.multiply(g[at], slope[at], out=out.reshape(-1)[at])
        share(part, len(g), len(g), piece)
        return out
    return y.reshape(shape).astype(dtype, copy=False), (Early(slope, dx),)


@fused
def _gelu_tanh(x, phi, y):
    """phi = (1 + tanh u) / 2 = 1 / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³);   y = x phi"""
    xp.multiply(x, x, out=phi)
    phi *= -C3
    phi -= C1
    phi *= x                                                      # -2u
    xp.minimum(phi, 80, out=phi)                                  # e^80 is still finite
    xp.exp(phi, out=phi)
    phi += 1
    xp.divide(1, phi, out=phi)
    xp.multiply(x, phi, out=y)


@fused
def _slope_tanh(x, phi):
    """phi becomes phi + x phi (1 - phi) d2u/dx"""
    y = x * x
    y *= 3 * C3
    y += C1
    y *= x
    y *= 1 - phi
    y += 1
    phi *= y


@fused
def _gelu_erf(x, phi, y):
    """phi = (1 + erf(x / √2)) / 2;   y = x phi"""
    xp.multiply(1 + erf(x * R2), 0.5, out=phi)
    xp.multiply(x, phi, out=y)


@fused
def _slope_erf(x, phi):
    """phi becomes phi + x e^(-x²/2) / √(2π)"""
    phi += x * xp.exp(x * x * -0.5) * R2PI


R2, R2PI = math.sqrt(1 / 2), 1 / math.sqrt(2 * math.pi)
C1, C3 = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
_GELU = {"tanh": (_gelu_tanh, _slope_tanh), "erf": (_gelu_erf, _slope_erf)}


def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100) -> Tensor:
    """The mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.

    logits: (..., vocabulary)   targets: (...) integers, NumPy, checked on the host   out: (), at
    least float32: half-precision logits have a loss that can be scaled without overflow.
    Raises ValueError for a target out of range, or where every target is ignored.
    """
    targets = np.asarray(targets)
    shape, vocabulary = tuple(logits.shape[:-1]), logits.shape[-1]
    if targets.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets must be integers, not {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"cross_entropy: logits are {(*shape, vocabulary)}, so targets must be "
                         f"{shape}, not {targets.shape}")
    kept = targets.reshape(-1) != ignore_index
    flat = np.where(kept, targets.reshape(-1), -1)
    if not kept.any():
        raise ValueError(f"cross_entropy: all {kept.size} targets are ignored: nothing to average")
    good = flat[kept]
    if good.min() < 0 or good.max() >= vocabulary:
        bad = good.min() if good.min() < 0 else good.max()
        raise ValueError(f"cross_entropy: target {bad} is not one of the {vocabulary} classes")
    return nll(logits, targets=asarray(flat), count=len(good))


@op
def nll(logits, *, targets, count):
    """Σ -log softmax(logitsᵢ)[targetsᵢ] / count, of targets that were checked, on the device; a
    target of -1 does not count."""
    shape, dtype, z = logits.shape, logits.dtype, widest(rows(logits))
    weights, targets = (targets >= 0).astype(z.dtype), xp.maximum(targets, 0)
    weights *= 1 / count
    each, piece = xp.arange(len(z)), current().piece // z.shape[1] + 1
    p, chosen, total = xp.empty_like(z), xp.empty_like(weights), xp.empty_like(weights)
    def forward(at):
        top = z[at].max(axis=1, keepdims=True)
        chosen[at] = z[at][each[: len(top)], targets[at]] - top[:, 0]
        exp_shifted(z[at], top, p[at])
        total[at] = p[at].sum(axis=1)
    share(forward, len(z), z.size, piece)
    def dlogits(g):                                           # in p's own memory: (p - onehot) w
        def part(at): p[at] *= (g * weights[at] / total[at])[:, None]
        share(part, len(p), p.size, piece)
        p[each, targets] -= g * weights
        return p.reshape(shape).astype(dtype, copy=False)
    return ((xp.log(total) - chosen) * weights).sum(), (dlogits,)
