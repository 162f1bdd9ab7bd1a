"""Functions of neural networks: softmax, norms, GELU, SwiGLU, cross-entropy, rotary, attention."""
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
    features(x, gain=gain, shift=shift)
    def mean(t): return total(t, -1, keepdims=True) / t.shape[-1]  # (..., 1)
    centred = x - mean(x)
    rate = 1 / xp.sqrt(mean(centred * centred) + eps)             # (..., 1): 1 / deviation
    normal = centred * rate
    def dx(g): return rate * (g * gain - mean(g * gain) - normal * mean(g * gain * normal))
    def dgain(g): return total(rows(g * normal), 0)               # (d,)
    def dshift(g): return total(rows(g), 0)                       # (d,)
    return like(x, normal * gain + shift), (dx, dgain, dshift)

@op
def rms_norm(x, gain, *, eps=1e-6):
    """x / √(mean of x² + eps) · gain, over the last axis    x: (..., d)   Zhang & Sennrich 2019"""
    features(x, gain=gain)
    def mean(t): return total(t, -1, keepdims=True) / t.shape[-1]  # (..., 1)
    rate = 1 / xp.sqrt(mean(x * x) + eps)                         # (..., 1)
    def dx(g): return rate * (g * gain - x * rate * rate * mean(g * gain * x))
    def dgain(g): return total(rows(g * x * rate), 0)             # (d,)
    return like(x, x * rate * gain), (dx, dgain)

def features(x, **vectors):
    """Raise ValueError unless each vector, such as the gain, has one number per feature of x."""
    if {vector.shape for vector in vectors.values()} != {x.shape[-1:]}:
        raise ValueError(
            f"x has {x.shape[-1]} features, {' and '.join(vectors)} must be ({x.shape[-1]},)")

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
def swiglu(x, y):
    """silu(x) · y = x σ(x) · y elementwise, with σ(x) = 1 / (1 + e⁻ˣ)        Shazeer 2020"""
    alike(x, y)
    e = xp.exp(-abs(x))                                           # at most 1: no overflow
    s = xp.where(x < 0, e, 1) / (1 + e)
    def dx(g): return g * y * s * (1 + x * (1 - s))
    def dy(g): return g * x * s
    return x * s * y, (dx, dy)

def alike(x, y):
    """Raise ValueError unless x and y have one shape."""
    if x.shape != y.shape:
        raise ValueError("needs one shape for both")

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

@op
def rotary(x, *, heads, theta=10000.0, start=0):
    """Turn each pair of a head's numbers by an angle that grows with the position; Su et al. 2021.
    (a, b) -> (a cos φ - b sin φ, b cos φ + a sin φ), φ = (start + t) / theta^(i / half) for token t
    a: number i of a head's first half, b: of its second        x, out: (batch, tokens, d)
    start: an integer, or the position of each token, (batch, tokens) on the host, for start + t.
    """
    (batch, tokens, d), half = x.shape, x.shape[2] // heads // 2
    if heads < 1 or d != heads * half * 2:
        raise ValueError(f"needs an even number of features for each of {heads} heads")
    cos, sin = turns(start, tokens, half, theta, x.dtype)         # (tokens, 1, half) each
    def turned(t, sin):
        pairs = t.reshape(batch, tokens, heads, 2, half)
        a, b = pairs[..., 0, :], pairs[..., 1, :]                 # (batch, tokens, heads, half)
        return xp.stack([a * cos - b * sin, b * cos + a * sin], axis=3).reshape(t.shape)
    def dx(g): return turned(g, -sin)                             # back by the same angle
    return turned(x, sin), (dx,)

def turns(start, tokens, half, theta, dtype):
    """Return cos φ and sin φ of these positions, (.., tokens, 1, half) each, from the host."""
    at = start if np.ndim(start) else np.arange(start, start + tokens)
    angles = at[..., None, None] / theta ** (np.arange(half) / half)
    return tuple(asarray(f(angles).astype(str(dtype))) for f in (np.cos, np.sin))

@composed
def attention(q, k, v, *, heads, causal=True, mask=None, kv_heads=None):
    """softmax(q kᵀ / √d_head) v, head by head        q: (batch, m, d)   k, v: (batch, n, d)
    out: (batch, m, d). causal: query i is token n - m + i and sees no later key. mask: (batch, n)
    on the host, false where a key is padding, which no query sees. A query that sees no key at all
    (all earlier keys are padding) gets a finite output without meaning. kv_heads: k and v have
    fewer heads, (batch, n, kv_heads · d_head), each for a group of neighbouring query heads
    (Ainslie et al. 2023); None: as many.
    """
    kv_heads = fits_heads(q, k, v, heads, causal, kv_heads)
    (batch, m, d), n, width, group = q.shape, k.shape[1], q.shape[2] // heads, heads // kv_heads
    Q, K, V = (transpose(x.reshape(*x.shape[:2], kv_heads, g, width), axes=(0, 2, 3, 1, 4))
               for x, g in ((q, group), (k, 1), (v, 1)))  # (batch, kv_heads, group | 1, .., d_head)
    scores = Q @ transpose(K, axes=(0, 1, 2, 4, 3)) * (1 / math.sqrt(width))  # (.., group, m, n)
    scores = scores.reshape(batch, heads, m, n)
    if causal:
        scores = scores + later(m, n, q.dtype)
    if mask is not None:
        scores = scores + padding(mask, batch, n, q.dtype)
    weights = softmax(scores).reshape(batch, kv_heads, group, m, n)
    return transpose(weights @ V, axes=(0, 3, 1, 2, 4)).reshape(batch, m, d)

def fits_heads(q, k, v, heads, causal, kv_heads):
    """Return the number of k's heads; ValueError unless shapes and heads fit together."""
    (batch, m, d), n, own = q.shape, k.shape[1], heads if kv_heads is None else kv_heads
    if own < 1 or heads < 1 or heads % own:
        raise ValueError(f"attention: heads is {heads}, kv_heads is {own}: needs 1 or more of each,"
                         " heads a multiple of kv_heads")
    if d % heads or not k.shape == v.shape == (batch, n, d // heads * own) or (causal and m > n):
        width = "d" if own == heads else f"d / {heads // own}"
        raise ValueError(f"attention: q is {q.shape}, k is {k.shape}, v is {v.shape}: needs "
                         f"(batch, m, d), (batch, n, {width}) twice, d a multiple of {heads} heads"
                         + (", m at most n" if causal else ""))
    return own

def later(m, n, dtype):
    """Return the additive causal mask (m, n): later keys get a value whose exponential is 0."""
    return xp.triu(xp.full((m, n), lowest(dtype), dtype=dtype), k=n - m + 1)

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
