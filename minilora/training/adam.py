"""Adam, one step: the formula that `optim.Adam` runs and a kernel may stand in for."""
from __future__ import annotations

from ..backend import Array, xp
from ..tensor import has_kernel


@has_kernel
def adam(
    p: Array, g: Array, m: Array, v: Array, *, betas: tuple[float, float], rate: float,
    spread: float, eps: float, kept: float) -> None:
    """One step, in place. rate is lr · m̂/m, spread is √(v̂/v), kept what decay leaves of p."""
    b1, b2 = betas
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * (g * g)
    p[...] = kept * p - rate * m / (spread * xp.sqrt(v) + eps)
