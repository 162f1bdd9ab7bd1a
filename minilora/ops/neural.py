"""What networks add to arithmetic: softmax, layer norm, GELU, cross-entropy, attention."""
import math

import numpy as np

from ..backend import asarray, erf, xp
from ..tensor import composed, op
from .algebra import rows
from .shape import transpose


@op
def softmax(x, *, axis=-1):
    """eˣ / Σ eˣ along `axis`; large logits are safe."""
    e = xp.exp(x - x.max(axis=axis, keepdims=True))
    y = e / e.sum(axis=axis, keepdims=True)
    def dx(g): return y * (g - (g * y).sum(axis=axis, keepdims=True))
    return y, (dx,)

@op
def log_softmax(x, *, axis=-1):
    """x - log Σ eˣ along `axis`."""
    z = x - x.max(axis=axis, keepdims=True)
    y = z - xp.log(xp.exp(z).sum(axis=axis, keepdims=True))
    def dx(g): return g - xp.exp(y) * g.sum(axis=axis, keepdims=True)
    return y, (dx,)

@op
def layer_norm(x, gain, shift, *, eps=1e-5):
    """(x - mean) / √(variance + eps) · gain + shift, over the last axis        x: (..., d)"""
    features(x, gain, shift)
    def mean(t): return t.mean(axis=-1, keepdims=True)
    centred = x - mean(x)
    rate = 1 / xp.sqrt(mean(centred * centred) + eps)
    normal = centred * rate
    def dx(g): return rate * (g * gain - mean(g * gain) - normal * mean(g * gain * normal))
    def dgain(g): return rows(g * normal).sum(axis=0)
    def dshift(g): return rows(g).sum(axis=0)
    return normal * gain + shift, (dx, dgain, dshift)

def features(x, gain, shift):
    """Raise ValueError unless gain and shift have a number for each of x's features."""
    if not gain.shape == shift.shape == x.shape[-1:]:
        raise ValueError(f"x has {x.shape[-1]} features, gain and shift must be ({x.shape[-1]},)")

@op
def gelu(x, *, approximate="tanh"):
    """x · Φ(x), Φ the normal distribution's        Hendrycks & Gimpel 2016
    approximate: "none" is exact; "tanh", GPT-2's, takes Φ(x) as (1 + tanh u) / 2.
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
def cross_entropy(logits, targets, *, ignore_index=-100):
    """The mean of -log softmax(logits)[target] over the targets that are not `ignore_index`.
    logits: (..., vocabulary)   targets: (...) integers, NumPy, checked on the host   out: ()
    Raises ValueError for a target out of range, or where every target is ignored.
    """
    targets, count = classes(logits, targets, ignore_index)
    shape, z = logits.shape, rows(logits)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - xp.log(xp.exp(z).sum(axis=1, keepdims=True))
    weights = (targets >= 0).astype(z.dtype) / count              # 0 for what is ignored
    def dlogits(g):
        hot = (targets[:, None] == xp.arange(shape[-1])).astype(g.dtype)
        return ((xp.exp(log_p) - hot) * (g * weights[:, None])).reshape(shape)
    picked = xp.where(targets >= 0, log_p[xp.arange(len(targets)), targets], 0)
    return -(picked * weights).sum(), (dlogits, None)

def classes(logits, targets, ignore_index):
    """(targets (rows,) in the library in use, -1 where ignored, how many are not), once checked."""
    targets, shape, vocabulary = np.asarray(targets), tuple(logits.shape[:-1]), logits.shape[-1]
    if targets.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: targets must be integers, not {targets.dtype}")
    if targets.shape != shape:
        raise ValueError(f"cross_entropy: logits are {(*shape, vocabulary)}, so targets must be "
                         f"{shape}, not {targets.shape}")
    flat = np.where(targets == ignore_index, -1, targets.astype(np.int64)).reshape(-1)
    good = flat[targets.reshape(-1) != ignore_index]
    if not good.size:
        raise ValueError(f"cross_entropy: all {flat.size} targets are ignored: nothing to average")
    if good.min() < 0 or good.max() >= vocabulary:
        bad = good.min() if good.min() < 0 else good.max()
        raise ValueError(f"cross_entropy: target {bad} is not one of the {vocabulary} classes")
    return asarray(flat), good.size

@composed
def attention(q, k, v, *, heads, causal=True, mask=None):
    """softmax(q kᵀ / √d_head) v, head by head        q: (batch, m, d)   k, v: (batch, n, d)
    out: (batch, m, d). causal: query i is token n - m + i and sees no later one. mask: (batch, n),
    on the host: false where a key is padding, which nobody sees. A query with nothing to see (all
    before it is padding) gives what is finite and means nothing.
    """
    fits_heads(q, k, v, heads, causal)
    (batch, m, d), n = q.shape, k.shape[1]
    Q, K, V = (transpose(x.reshape(*x.shape[:2], heads, d // heads), axes=(0, 2, 1, 3))
               for x in (q, k, v))                                # (batch, heads, tokens, d_head)
    scores = Q @ transpose(K, axes=(0, 1, 3, 2)) * (1 / math.sqrt(d // heads))
    if causal:
        scores = scores + later(m, n, q.dtype)
    if mask is not None:
        scores = scores + padding(mask, batch, n, q.dtype)
    weights = softmax(scores)                                     # (batch, heads, m, n)
    return transpose(weights @ V, axes=(0, 2, 1, 3)).reshape(batch, m, d)

def fits_heads(q, k, v, heads, causal):
    """Raise ValueError unless attention is possible between these."""
    (batch, m, d), n = q.shape, k.shape[1]
    if heads < 1 or d % heads or not k.shape == v.shape == (batch, n, d) or (causal and m > n):
        raise ValueError(f"attention: q is {q.shape}, k is {k.shape}, v is {v.shape}: needs "
                         f"(batch, m, d), (batch, n, d) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))

def later(m, n, dtype):
    """Added to scores (..., m, n), hides what is later than a query: so low that its e^ is 0."""
    return xp.triu(xp.full((m, n), lowest(dtype), dtype), n - m + 1)

def padding(mask, batch, n, dtype):
    """The same for keys where mask (batch, n) is false: (batch, 1, 1, n). ValueError where it has
    another shape, or nothing is left of a sequence."""
    mask = np.asarray(mask).astype(bool)
    if mask.shape != (batch, n) or not mask.any(axis=1).all():
        raise ValueError(f"attention: mask is {mask.shape}: it must be {(batch, n)}, with a true "
                         "in every row")
    return asarray(np.where(mask, 0, lowest(dtype)).astype(str(dtype)))[:, None, None]

def lowest(dtype):
    """Two of them can be added to a score, and are still finite."""
    return float(np.finfo(str(dtype)).min) / 4
