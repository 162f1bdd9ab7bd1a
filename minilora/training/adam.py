"""One step of Adam: the formula of `optim.Adam`, which a kernel may replace."""
from __future__ import annotations

from ..backend import Array, xp
from ..tensor import has_kernel


@has_kernel
def adam(
    p: Array, g: Array, m: Array, v: Array, *, betas: tuple[float, float], rate: float,
    spread: float, eps: float, kept: float) -> None:
    """Update p, m, v in place. rate = lr · m̂/m, spread = √(v̂/v), kept = 1 - lr · weight_decay."""
    b1, b2 = betas
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * (g * g)
    p[...] = kept * p - rate * m / (spread * xp.sqrt(v) + eps)
