"""What surrounds an optimizer: learning rates from step to step, and gradients kept in bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .backend import current, xp
from .nn import Parameter


def linear_schedule(peak: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """step -> lr: from 0 up to `peak` over `warmup` steps, then straight down to 0 at `steps`."""
    return lambda step: peak * min((step + 1) / (warmup + 1), max(0.0, _left(step, steps, warmup)))


def cosine_schedule(
    peak: float, steps: int, warmup: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """step -> lr: up to `peak` over `warmup` steps, then half a cosine down to `floor`."""

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        left = min(1.0, max(0.0, _left(step, steps, warmup)))
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * left))

    return lr


def _left(step: int, steps: int, warmup: int) -> float:
    return (steps - step) / max(1, steps - warmup)


def clip_grad_norm(
    parameters: Mapping[str, Parameter] | Iterable[Parameter], max_norm: float
) -> Any:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`.

    Returns the norm before: a float, or on a device an array (), so that nothing has to wait for
    it. Gradients are replaced, not written to.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be positive, not {max_norm}")
    held = parameters.values() if isinstance(parameters, Mapping) else parameters
    grads = [(p, p.grad) for p in held if p.grad is not None]
    if not grads:
        return 0.0
    size = current().piece  # a large gradient is not widened all at once
    flat = (g.reshape(-1)[i : i + size] for _, g in grads for i in range(0, g.size, size))
    norm = xp.sqrt(sum((x * x).sum() for x in (piece.astype("float64") for piece in flat)))
    if not current().peek(norm <= max_norm, False):
        factor = max_norm / xp.maximum(norm, max_norm)  # one number for all
        for p, g in grads:
            p.grad = g * factor.astype(g.dtype, copy=False)
    return norm
