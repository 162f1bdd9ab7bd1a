"""Learning-rate schedules, gradient clipping, and the parameters of an optimizer by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..backend import current, xp
from ..checks import describe, integer, real
from ..nn import Parameter
from ..words import our_words

Parameters = Mapping[str, Parameter] | Iterable[Parameter]


def named(who: str, parameters: Parameters, trained: bool = False) -> dict[str, Parameter]:
    """Return the parameters by name; parameters without names are called "0", "1", and so on.

    Raises TypeError for anything but parameters, such as a model. Raises ValueError for a duplicate
    and, if `trained`, for a frozen parameter or an empty list.
    """
    remedy = "pass model.trainable_parameters()"
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{who}: it takes parameters, not {describe(parameters)}: {remedy}")
    if not isinstance(parameters, Mapping):
        parameters = {str(i): p for i, p in enumerate(parameters)}
    names: dict[Parameter, str] = {}
    for name, p in parameters.items():
        if not isinstance(p, Parameter):
            raise TypeError(f"{who}: parameter {name} is {describe(p)}, not a Parameter: {remedy}")
        if names.setdefault(p, name) != name:
            raise ValueError(f"{who}: parameters {names[p]} and {name} are the same: pass it once")
        if trained and not p.requires_grad:
            raise ValueError(f"{who}: parameter {name} is frozen: {remedy}")
    if trained and not names:
        raise ValueError(
            f"{who}: nothing to train: all parameters are frozen, or the iterator is empty"
        )
    return dict(parameters)


def why_idle(parameters: Mapping[str, Parameter]) -> str:
    """Return the reason why no parameter has a gradient, with the remedy."""
    if not any(p.requires_grad for p in parameters.values()):
        return (
            "all its parameters have been frozen since it was created: create it after "
            "lora.attach, from model.trainable_parameters()"
        )
    return (
        "none of its parameters has a gradient: call loss.backward() between zero_grad() and "
        "step(), on a loss that depends on them (an inactive adapter gets no gradient)"
    )


@our_words
def linear_schedule(peak: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """Return step -> lr: linear to `peak` over `warmup` steps, then linear to 0 at `steps`."""
    _check("linear_schedule", steps, warmup, peak=peak)
    return lambda step: peak * min((step + 1) / (warmup + 1), max(0.0, _left(step, steps, warmup)))


@our_words
def cosine_schedule(
    peak: float, steps: int, warmup: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """Return step -> lr: linear to `peak` over `warmup` steps, then half a cosine to `floor`."""
    _check("cosine_schedule", steps, warmup, peak=peak, floor=floor)

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        left = min(1.0, max(0.0, _left(step, steps, warmup)))
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * left))

    return lr


def _check(who: str, steps: int, warmup: int, **rates: float) -> None:
    integer(who, "steps", steps, 1)
    integer(who, "warmup", warmup)
    for name, rate in rates.items():
        real(who, name, rate, "[0, inf)")


def _left(step: int, steps: int, warmup: int) -> float:
    return (steps - step) / max(1, steps - warmup)


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
