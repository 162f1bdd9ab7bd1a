"""Whole formulas as one op: faster and leaner than composing them, and each equal to its composed
twin (in the tests). The gradients are those of the usual derivations, written once, here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import Array, asarray, current, erf, xp
from ..tensor import Early, Tensor, once, op, recording
from ..threads import share
from .algebra import rows

PIECE = 1 << 18  # numbers in a piece of work that should stay in the cache
QUERIES = 64  # queries in a block of attention


@op
def softmax(x, *, axis=-1):
    """eˣ / Σ eˣ along `axis`; large logits are safe."""
    y = x - x.max(axis=axis, keepdims=True)
    xp.exp(y, out=y)
    y /= y.sum(axis=axis, keepdims=True)
    def dx(g):
        gy = g * y
        gy -= y * gy.sum(axis=axis, keepdims=True)
        return gy
    return y, (dx,)


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
    over_d = xp.full((d, 1), 1 / d, x.dtype)                      # a mean is a product with this
    x = rows(x)
    normal, y, rate = xp.empty_like(x), xp.empty_like(x), xp.empty((len(x), 1), x.dtype)
    def forward(at):
        centred = xp.subtract(x[at], x[at] @ over_d, out=normal[at])
        rate[at] = 1 / xp.sqrt(xp.multiply(centred, centred, out=y[at]) @ over_d + eps)
        centred *= rate[at]
        xp.multiply(centred, gain, out=y[at])
        y[at] += shift
    share(forward, len(x), x.size, PIECE // d + 1)
    def dx(g):
        grad = xp.empty(shape, normal.dtype)
        g, out = rows(g), rows(grad)
        def backward(at):
            scaled, here = g[at] * gain, out[at]
            along = xp.multiply(scaled, normal[at], out=here) @ over_d
            scaled -= scaled @ over_d
            xp.multiply(normal[at], along, out=here)
            xp.subtract(scaled, here, out=here)
            here *= rate[at]
        share(backward, len(g), g.size, PIECE // d + 1)
        return grad
    def dgain(g): return (rows(g) * normal).sum(axis=0)
    def dshift(g): return rows(g).sum(axis=0)
    return y.reshape(shape), (dx, dgain, dshift)


@op
def gelu(x, *, form="tanh"):
    """x · Φ(x): `form` "erf" is exact, "tanh" GPT-2's approximation (Hendrycks & Gimpel 2016)."""
    if form not in _GELU:
        raise ValueError(f'form must be "tanh" or "erf", not {form!r}')
    phi, derivative = _GELU[form]
    shape, dtype = x.shape, x.dtype                               # e^x overflows half precision:
    x = x.reshape(-1).astype(dtype if dtype.itemsize > 2 else "float32", copy=False)
    factor, y = xp.empty_like(x), xp.empty_like(x)
    def forward(at):
        xp.multiply(x[at], phi(x[at], factor[at]), out=y[at])
    share(forward, len(x), len(x), PIECE)
    def slope():                                                  # in factor's own memory
        def part(at): derivative(x[at], factor[at])
        share(part, len(x), len(x), PIECE)
        return factor.reshape(shape).astype(dtype, copy=False)
    def dx(g, slope):
        out, g, slope = xp.empty_like(slope), g.reshape(-1), slope.reshape(-1)
        def part(at): xp.multiply(g[at], slope[at], out=out.reshape(-1)[at])
        share(part, len(g), len(g), PIECE)
        return out
    return y.reshape(shape).astype(dtype, copy=False), (Early(slope, dx),)


def _phi_tanh(x, out):
    """(1 + tanh u) / 2 = 1 / (1 + e^-2u), u = √(2/π) (x + 0.044715 x³)"""
    xp.multiply(x, x, out=out)
    out *= -C3
    out -= C1
    out *= x                                                      # -2u
    xp.minimum(out, 80, out=out)                                  # e^80 is still finite
    xp.exp(out, out=out)
    out += 1
    return xp.divide(1, out, out=out)


def _slope_tanh(x, phi):
    """phi becomes phi + x phi (1 - phi) d2u/dx"""
    y = x * x
    y *= 3 * C3
    y += C1
    y *= x
    y *= 1 - phi
    y += 1
    phi *= y


def _phi_erf(x, out): return xp.multiply(1 + erf(x * math.sqrt(0.5)), 0.5, out=out)


def _slope_erf(x, phi): phi += x * xp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))


C1, C3 = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
_GELU = {"tanh": (_phi_tanh, _slope_tanh), "erf": (_phi_erf, _slope_erf)}


def cross_entropy(logits: Tensor, targets: Any, ignore_index: int = -100) -> Tensor:
    """The mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.

    logits: (..., vocabulary)   targets: (...) integers, NumPy, checked on the host   out: ()
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
    flat = np.where(kept, targets.reshape(-1), 0)
    if not kept.any():
        raise ValueError(f"cross_entropy: all {kept.size} targets are ignored: nothing to average")
    if flat.min() < 0 or flat.max() >= vocabulary:
        bad = flat.min() if flat.min() < 0 else flat.max()
        raise ValueError(f"cross_entropy: target {bad} is not one of the {vocabulary} classes")
    weights = (kept / kept.sum()).astype(np.dtype(str(logits.dtype)))
    return nll(logits, targets=asarray(flat), weights=asarray(weights))


@op
def nll(logits, *, targets, weights):
    """Σ weightsᵢ · -log softmax(logitsᵢ)[targetsᵢ], targets already checked and on the device."""
    shape, z = logits.shape, rows(logits)
    each = xp.arange(len(z))
    p, chosen, total = xp.empty_like(z), xp.empty_like(weights), xp.empty_like(weights)
    def forward(at):
        here = xp.subtract(z[at], z[at].max(axis=1, keepdims=True), out=p[at])
        chosen[at] = here[each[: len(here)], targets[at]]
        total[at] = xp.exp(here, out=here).sum(axis=1)
    share(forward, len(z), z.size, PIECE // z.shape[1] + 1)
    def dlogits(g):                                           # in p's own memory: (p - onehot) w
        def part(at): p[at] *= (g * weights[at] / total[at])[:, None]
        share(part, len(p), p.size, PIECE // p.shape[1] + 1)
        p[each, targets] -= g * weights
        return p.reshape(shape)
    return ((xp.log(total) - chosen) * weights).sum(), (dlogits,)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool = True, keep: bool | None = None
) -> Tensor:
    """softmax(q kᵀ / √d_head) v, head by head        q: (batch, m, d)   k, v: (batch, n, d)

    out: (batch, m, d). `causal`: query i is token n - m + i and sees no later one. `keep` the
    weights for the backward pass or compute them again there; None keeps up to 512 tokens.
    """
    keep = recording() and (k.shape[1] <= 512 if keep is None else keep)
    return attend(q, k, v, heads=heads, causal=causal, keep=keep)


@op
def attend(q, k, v, *, heads, causal, keep):
    """Attention in pieces that fit the cache; of a causal one, the masked half is never made.

    With E = e^(s - shift) and n its row sums, softmax is E/n. E/n itself is never formed: g/n
    stands in for g, and Σ (E/n) dP, which the softmax's gradient subtracts, is Σ g·out.
    """
    batch, m, d = q.shape
    n = k.shape[1]
    fits = heads > 0 and d % heads == 0 and k.shape == v.shape == (batch, n, d)
    if not fits or (causal and m > n):
        raise ValueError(f"needs (batch, m, d), (batch, n, d) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))
    scale, side = 1 / math.sqrt(d // heads), min(m, QUERIES)
    half = xp.triu(xp.full((side, side), -math.inf, q.dtype), 1)  # hides the later tokens
    Q, K, V = (by_head(x, heads) for x in (q, k, v))              # (batch, heads, tokens, d_head)
    out = xp.empty_like(q)
    O = by_head(out, heads)
    shift, inverse = xp.zeros((2, batch, heads, m, 1), q.dtype)
    together = tasks(batch, heads, side * n)
    free = current().numbers_are_free
    ones = xp.ones((n, 1), q.dtype)
    blocks = [(slice(i, min(i + side, m)), slice(0, n - m + min(i + side, m) if causal else n))
              for i in range(0, m, side or 1)]                    # queries, the keys they may see
    kept: list[dict[int, Array]] = [{} for _ in together]

    def turned(x): return x.swapaxes(-1, -2).copy()               # BLAS is slow at small x @ yᵀ
    def scores(t, KT, i, j):
        s = (Q[t][:, :, i] * scale) @ KT[..., j]
        if causal:
            s[..., j.stop - (i.stop - i.start):] += half[: i.stop - i.start, : i.stop - i.start]
        return s
    def attended(task, t, KT, small, i, j):
        E = scores(t, KT, i, j)
        if not (free and small[:, :, i].all()):
            shift[t][:, :, i] = xp.where(small[:, :, i], 0, E.max(-1, keepdims=True))
            E -= shift[t][:, :, i]
        xp.exp(E, out=E)
        inverse[t][:, :, i] = 1 / (E @ ones[j])
        xp.multiply(E @ V[t][:, :, j], inverse[t][:, :, i], out=O[t][:, :, i])
        if keep:
            kept[task][i.start] = E
    def forward(at):
        for task, t in enumerate(together[at], at.start):
            small, KT = _small(Q[t], K[t], scale, causal), turned(K[t])
            for i, j in blocks:
                attended(task, t, KT, small, i, j)
    share(forward, len(together), batch * heads * m * n)

    def again(t, KT, i, j):
        E = scores(t, KT, i, j)
        E -= shift[t][:, :, i]
        return xp.exp(E, out=E)

    @once
    def all_three(g):
        G = by_head(g, heads)
        dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
        dQ, dK, dV = (by_head(x, heads) for x in (dq, dk, dv))
        def differentiated(task, t, KT, VT, i, j):
            E = kept[task].pop(i.start) if keep else again(t, KT, i, j)
            over = G[t][:, :, i] * inverse[t][:, :, i]
            dV[t][:, :, j] += E.swapaxes(-1, -2) @ over
            ds = over @ VT[..., j]
            ds -= (over * O[t][:, :, i]).sum(axis=-1, keepdims=True)
            ds *= E
            xp.multiply(ds @ K[t][:, :, j], scale, out=dQ[t][:, :, i])
            dK[t][:, :, j] += ds.swapaxes(-1, -2) @ (Q[t][:, :, i] * scale)
        def backward(at):
            for task, t in enumerate(together[at], at.start):
                KT, VT = None if keep else turned(K[t]), turned(V[t])
                for i, j in blocks:
                    differentiated(task, t, KT, VT, i, j)
        share(backward, len(together), batch * heads * m * n)
        return dq, dk, dv
    def dq(g): return all_three(g)[0]
    def dk(g): return all_three(g)[1]
    def dv(g): return all_three(g)[2]
    return out, (dq, dk, dv)


def _small(Q, K, scale, causal):
    """Rows (batch, heads, m, 1) whose |q·k| · scale is under 40 for every key that they may see.

    By Cauchy and Schwarz, from lengths: e^ of it and sums of that need no shift. Looks at no later
    token, so that the future does not change the past, not by a bit.
    """
    m, n = Q.shape[2], K.shape[2]
    if not current().numbers_are_free or Q.dtype.itemsize < 4 or not n:
        return xp.zeros((*Q.shape[:3], 1), bool)
    q, k = (xp.sqrt(xp.square(x).sum(axis=-1, keepdims=True)) for x in (Q, K))
    k = xp.maximum.accumulate(k, axis=2)[:, :, n - m:] if causal else k.max(axis=2, keepdims=True)
    return q * k * scale < 40


def by_head(x, heads):
    """A view: (batch, tokens, d) -> (batch, heads, tokens, d_head)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def tasks(batch: int, heads: int, size: int) -> list[tuple[slice, slice]]:
    """(sequences, heads) that are done together, as slices: independent of one another."""
    together = max(1, PIECE // max(1, size))                      # heads, of one sequence or more
    some, each = max(1, together // heads), min(heads, together)
    return [(slice(b, b + some), slice(h, h + each))
            for b in range(0, batch, some) for h in range(0, heads, each)]
