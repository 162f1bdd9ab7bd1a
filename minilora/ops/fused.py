"""Whole formulas as one op: faster and leaner than composing them, and each equal to its composed
twin (in the tests). The gradients are those of the usual derivations, written once, here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..backend import asarray, erf, xp
from ..tensor import Early, Tensor, once, op, recording
from .algebra import rows

PIECE = 1 << 18  # numbers in a piece of work that should stay in the cache
QUERIES = 128  # queries in a block of attention


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
    d = x.shape[-1]
    if gain.shape != (d,) or shift.shape != (d,):
        raise ValueError(f"x has {d} features, gain and shift must be ({d},)")
    over_d = xp.full((d, 1), 1 / d, x.dtype)                      # a mean is a product with this
    normal = rows(x) - rows(x) @ over_d
    rate = 1 / xp.sqrt(xp.square(normal) @ over_d + eps)          # (rows, 1)
    normal *= rate
    y = normal * gain
    y += shift
    def dx(g):
        g = rows(g) * gain
        along = (g * normal) @ over_d
        g -= g @ over_d
        g -= normal * along
        g *= rate
        return g.reshape(shape)
    def dgain(g): return (rows(g) * normal).sum(axis=0)
    def dshift(g): return rows(g).sum(axis=0)
    shape = x.shape
    return y.reshape(shape), (dx, dgain, dshift)


@op
def gelu(x, *, form="tanh"):
    """x · Φ(x): `form` "erf" is exact, "tanh" GPT-2's approximation (Hendrycks & Gimpel 2016)."""
    dtype = x.dtype
    x = x if dtype.itemsize > 2 else x.astype("float32")
    if form == "erf":
        share = (1 + erf(x * math.sqrt(0.5))) * 0.5               # Φ(x)
        def slope(): return (share + x * xp.exp(x * x * -0.5) * c).astype(dtype, copy=False)
        c = 1 / math.sqrt(2 * math.pi)
    elif form == "tanh":                                    # (1 + tanh u) / 2 = 1 / (1 + e^-2u)
        c1, c3 = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
        share = xp.multiply(x, x, out=xp.empty_like(x))
        share *= -c3
        share -= c1
        share *= x                                                # -2u
        xp.minimum(share, 80, out=share)                          # e^80 is still finite
        xp.exp(share, out=share)
        share += 1
        xp.divide(1, share, out=share)
        def slope():
            inner = xp.multiply(x, x, out=xp.empty_like(x))
            inner *= 3 * c3
            inner += c1                                           # d 2u / dx
            inner *= x
            inner *= 1 - share
            inner += 1
            inner *= share
            return inner.astype(dtype, copy=False)
    else:
        raise ValueError(f'form must be "tanh" or "erf", not {form!r}')
    def dx(g, slope): return g * slope
    return (x * share).astype(dtype, copy=False), (Early(slope, dx),)


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
    top = z.max(axis=1, keepdims=True)
    p = z - top
    chosen = p[each, targets]
    xp.exp(p, out=p)
    total = p.sum(axis=1)
    def dlogits(g):                                           # in p's own memory: (p - onehot) w
        grad = xp.multiply(p, (g * weights / total)[:, None], out=p)
        grad[each, targets] -= g * weights
        return grad.reshape(shape)
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
    if d % heads or k.shape != v.shape or k.shape != (batch, n, d) or (causal and m > n):
        raise ValueError(f"needs (batch, m, d), (batch, n, d) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))
    scale, side = 1 / math.sqrt(d // heads), min(m, QUERIES)
    half = xp.triu(xp.full((side, side), -math.inf, q.dtype), 1)  # hides the later tokens
    Q, K, V = (by_head(x, heads) for x in (q, k, v))              # (batch, heads, tokens, d_head)
    out = xp.empty_like(q)
    shift, inverse = xp.empty((2, batch, heads, m, 1), q.dtype)
    pieces = list(_pieces(batch, heads, m, n, causal))
    kept = {}

    def scores(b, i, j):
        s = (Q[b, :, i] * scale) @ K[b, :, j].swapaxes(-1, -2)
        if causal:
            s[..., j.stop - (i.stop - i.start):] += half[: i.stop - i.start, : i.stop - i.start]
        return s
    for at, (b, i, j) in enumerate(pieces):
        E = scores(b, i, j)
        shift[b, :, i] = E.max(axis=-1, keepdims=True)
        E -= shift[b, :, i]
        xp.exp(E, out=E)
        inverse[b, :, i] = 1 / E.sum(axis=-1, keepdims=True)
        by_head(out, heads)[b, :, i] = (E @ V[b, :, j]) * inverse[b, :, i]
        if keep:
            kept[at] = E

    def again(b, i, j):
        E = scores(b, i, j)
        E -= shift[b, :, i]
        return xp.exp(E, out=E)

    @once
    def all_three(g):
        G = by_head(g, heads) * inverse
        along = (G * by_head(out, heads)).sum(axis=-1, keepdims=True)
        dq, dk, dv = xp.empty_like(q), xp.zeros_like(k), xp.zeros_like(v)
        for at, (b, i, j) in enumerate(pieces):
            E = kept.pop(at) if keep else again(b, i, j)
            by_head(dv, heads)[b, :, j] += E.swapaxes(-1, -2) @ G[b, :, i]
            ds = G[b, :, i] @ V[b, :, j].swapaxes(-1, -2)
            ds -= along[b, :, i]
            ds *= E
            ds *= scale
            by_head(dq, heads)[b, :, i] = ds @ K[b, :, j]
            by_head(dk, heads)[b, :, j] += ds.swapaxes(-1, -2) @ Q[b, :, i]
        return dq, dk, dv
    def dq(g): return all_three(g)[0]
    def dk(g): return all_three(g)[1]
    def dv(g): return all_three(g)[2]
    return out, (dq, dk, dv)


def by_head(x, heads):
    """A view: (batch, tokens, d) -> (batch, heads, tokens, d_head)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def _pieces(batch, heads, m, n, causal):
    """(batch rows, queries, keys) of each piece, as slices."""
    some = max(1, PIECE // (heads * min(m, QUERIES) * n or 1))
    for b in range(0, batch, some):
        for i in range(0, m, QUERIES):
            end = min(i + QUERIES, m)
            yield slice(b, b + some), slice(i, end), slice(0, n - m + end if causal else n)
