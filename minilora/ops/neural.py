"""Functions of neural networks: softmax, layer norm, GELU, cross-entropy, attention."""
import math

import numpy as np

from ..backend import asarray, erf, like, total, xp
from ..tensor import composed, op
from .algebra import rows
from .shape import transpose

IGNORED = -100  # a target that does not count, as in PyTorch


@op
def softmax(x, *, axis=-1):
    """eˣ / Σ eˣ along `axis`. The maximum is subtracted first, so no exponential overflows."""
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    y = like(x, e / total(e, axis, keepdims=True))
    def dx(g): return y * (g - total(g * y, axis, keepdims=True))
    return y, (dx,)

@op
def log_softmax(x, *, axis=-1):
    """x - log Σ eˣ along `axis`."""
    z = x - x.max(axis=axis, keepdims=True)
    y = like(x, z - xp.log(total(xp.exp(z), axis, keepdims=True)))
    def dx(g): return g - xp.exp(y) * total(g, axis, keepdims=True)
    return y, (dx,)

@op
def layer_norm(x, gain, shift, *, eps=1e-5):
    """(x - mean) / √(variance + eps) · gain + shift, over the last axis        x: (..., d)"""
    features(x, gain, shift)
    def mean(t): return total(t, -1, keepdims=True) / t.shape[-1]  # (..., 1)
    centred = x - mean(x)
    rate = 1 / xp.sqrt(mean(centred * centred) + eps)             # (..., 1): 1 / deviation
    normal = centred * rate
    def dx(g): return rate * (g * gain - mean(g * gain) - normal * mean(g * gain * normal))
    def dgain(g): return total(rows(g * normal), 0)               # (d,)
    def dshift(g): return total(rows(g), 0)                       # (d,)
    return like(x, normal * gain + shift), (dx, dgain, dshift)

def features(x, gain, shift):
    """Raise ValueError unless gain and shift have one number per feature of x."""
    if not gain.shape == shift.shape == x.shape[-1:]:
        raise ValueError(f"x has {x.shape[-1]} features, gain and shift must be ({x.shape[-1]},)")

@op
def gelu(x, *, approximate="tanh"):
    """x · Φ(x), with the normal distribution function Φ        Hendrycks & Gimpel 2016
    approximate: "none" is exact; "tanh", as in GPT-2, replaces Φ(x) by (1 + tanh u) / 2.
    """
    if approximate == "none":
        phi = (1 + erf(x * math.sqrt(1 / 2))) / 2
        def dx(g): return g * (phi + x * xp.exp(-x * x / 2) / math.sqrt(2 * math.pi))
    elif approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        phi = (1 + xp.tanh(c * (x + 0.044715 * x * x * x))) / 2
        def dx(g): return g * (phi + 2 * x * phi * (1 - phi) * c * (1 + 3 * 0.044715 * x * x))
    else:
        raise ValueError(f'approximate must be "tanh" or "none", not {approximate!r}')
    return x * phi, (dx,)

@op
def cross_entropy(logits, targets, *, ignore_index=IGNORED):
    """Mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.
    logits: (..., vocabulary)   targets: (...) integers on the host   out: ()
    Raises ValueError for a target out of range, or if all targets are ignored.
    """
    targets, count = classes(logits, targets, ignore_index)
    shape, z = logits.shape, rows(logits)
    z = z - z.max(axis=1, keepdims=True)                          # (rows, vocabulary)
    log_p = z - xp.log(total(xp.exp(z), 1, keepdims=True))        # (rows, vocabulary)
    weights = (targets >= 0).astype(log_p.dtype) / count          # (rows,): 0 if ignored
    def dlogits(g):
        hot = (targets[:, None] == xp.arange(shape[-1])).astype(g.dtype)
        return ((xp.exp(log_p) - hot) * (g * weights[:, None])).reshape(shape)
    picked = xp.where(targets >= 0, log_p[xp.arange(len(targets)), targets], 0)  # (rows,)
    return -(picked * weights).sum(), (dlogits, None)

def classes(logits, targets, ignore_index):
    """Check the targets; return them, (rows,), -1 where ignored, and how many are not ignored."""
    targets, shape, vocabulary = np.asarray(targets), tuple(logits.shape[:-1]), logits.shape[-1]
    if targets.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets must be integers, not {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"cross_entropy: logits are {(*shape, vocabulary)}, so targets must be "
                         f"{shape}, not {targets.shape}")
    flat = np.where(targets == ignore_index, -1, targets.astype(np.int64)).reshape(-1)
    counted = flat[targets.reshape(-1) != ignore_index]
    if not counted.size:
        raise ValueError(f"cross_entropy: all {flat.size} targets are ignored: nothing to average")
    if counted.min() < 0 or counted.max() >= vocabulary:
        wrong = counted.min() if counted.min() < 0 else counted.max()
        raise ValueError(f"cross_entropy: target {wrong} is not one of the {vocabulary} classes")
    return asarray(flat), counted.size

@composed
def attention(q, k, v, *, heads, causal=True, mask=None):
    """softmax(q kᵀ / √d_head) v, head by head        q: (batch, m, d)   k, v: (batch, n, d)
    out: (batch, m, d). causal: query i is token n - m + i and sees no later key. mask: (batch, n)
    on the host, false where a key is padding, which no query sees. A query that sees no key at all
    (all earlier keys are padding) gets a finite output without meaning.
    """
    fits_heads(q, k, v, heads, causal)
    (batch, m, d), n = q.shape, k.shape[1]
    Q, K, V = (transpose(x.reshape(*x.shape[:2], heads, d // heads), axes=(0, 2, 1, 3))
               for x in (q, k, v))                                # (batch, heads, tokens, d_head)
    scores = Q @ transpose(K, axes=(0, 1, 3, 2)) * (1 / math.sqrt(d // heads))  # (.., heads, m, n)
    if causal:
        scores = scores + later(m, n, q.dtype)
    if mask is not None:
        scores = scores + padding(mask, batch, n, q.dtype)
    weights = softmax(scores)                                     # (batch, heads, m, n)
    return transpose(weights @ V, axes=(0, 2, 1, 3)).reshape(batch, m, d)

def fits_heads(q, k, v, heads, causal):
    """Raise ValueError unless the shapes and the number of heads fit together."""
    (batch, m, d), n = q.shape, k.shape[1]
    if heads < 1 or d % heads or not k.shape == v.shape == (batch, n, d) or (causal and m > n):
        raise ValueError(f"attention: q is {q.shape}, k is {k.shape}, v is {v.shape}: needs "
                         f"(batch, m, d), (batch, n, d) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))

def later(m, n, dtype):
    """Return the additive causal mask (m, n): later keys get a value whose exponential is 0."""
    return xp.triu(xp.full((m, n), lowest(dtype), dtype), n - m + 1)

def padding(mask, batch, n, dtype):
    """Return the additive mask (batch, 1, 1, n) of the keys where mask (batch, n) is false.
    Raises ValueError for another shape, or if all keys of a sequence are padding."""
    mask = np.asarray(mask).astype(bool)
    if mask.shape != (batch, n) or not mask.any(axis=1).all():
        raise ValueError(f"attention: mask is {mask.shape}: it must be {(batch, n)}, with a true "
                         "in every row")
    return asarray(np.where(mask, 0, lowest(dtype)).astype(str(dtype)))[:, None, None]

def lowest(dtype):
    """Return a number so low that its exponential is 0; the sum of two of them is finite."""
    return float(np.finfo(str(dtype)).min) / 4
