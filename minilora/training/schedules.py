"""Learning-rate schedules, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..backend import current, xp
from ..checks import integer, real
from ..words import our_words
from .optim import Parameters, named


@dataclass(frozen=True)
class Schedule:
    """step -> learning rate, in a run of `steps` steps."""

    steps: int
    rate: Callable[[int], float]

    def __call__(self, step: int) -> float:
        return self.rate(step)


@our_words
def linear_schedule(peak: float, steps: int, warmup: int = 0) -> Schedule:
    """Return step -> lr: linear to `peak` over `warmup` steps, then linear to 0 at `steps`."""
    _check("linear_schedule", peak, steps, warmup)
    return Schedule(steps, lambda step: peak * min((step + 1) / (warmup + 1),
                                                   max(0.0, _left(step, steps, warmup))))


@our_words
def cosine_schedule(peak: float, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
    """Return step -> lr: linear to `peak` over `warmup` steps, then half a cosine to `floor`."""
    _check("cosine_schedule", peak, steps, warmup)
    if real("cosine_schedule", "floor", floor, "[0, inf)") > peak:
        raise ValueError(f"cosine_schedule: floor {floor:g} is above the peak, {peak:g}")

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        left = min(1.0, max(0.0, _left(step, steps, warmup)))
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * left))

    return Schedule(steps, lr)


def _check(who: str, peak: float, steps: int, warmup: int) -> None:
    real(who, "peak", peak, "[0, inf)")
    integer(who, "steps", steps, 1)
    if integer(who, "warmup", warmup) >= steps:
        raise ValueError(
            f"{who}: a warm-up of {warmup} steps leaves none of the {steps} for the peak: take "
            "fewer"
        )


def _left(step: int, steps: int, warmup: int) -> float:
    return (steps - step) / (steps - warmup)


@our_words
def clip_grad_norm(parameters: Parameters, max_norm: float) -> Any:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`.

    Returns the norm before clipping: a float, or on a device an array (), so that nothing waits for
    it. Gradients are replaced, not written to. An infinite `max_norm` only measures.
    """
    real("clip_grad_norm", "max_norm", max_norm, "(0, inf]")
    by_name = named("clip_grad_norm", parameters)
    grads = [(p, p.grad) for p in by_name.values() if p.grad is not None]
    if not grads:
        return 0.0
    size = current().piece  # a large gradient is converted to float64 piece by piece
    flat = (g.reshape(-1)[i : i + size] for _, g in grads for i in range(0, g.size, size))
    norm = xp.sqrt(sum((x * x).sum() for x in (piece.astype("float64") for piece in flat)))
    if not current().peek(norm <= max_norm, max_norm == math.inf):
        factor = max_norm / xp.maximum(norm, max_norm)  # one factor for all
        for p, g in grads:
            p.grad = g * factor.astype(g.dtype, copy=False)
    return norm
