"""What surrounds an optimizer: its parameters, a learning rate a step, gradients kept in bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..backend import current, xp
from ..checks import describe, real, whole
from ..nn import Parameter
from ..words import our_words

Parameters = Mapping[str, Parameter] | Iterable[Parameter]


def named(who: str, parameters: Parameters, trained: bool = False) -> dict[str, Parameter]:
    """The parameters by their names, those without by their places: "0", "1", and so on.

    Raises TypeError for what are no parameters, such as a whole model, and ValueError for one that
    is there twice, or, where they are to be trained, for one that is frozen, or none at all.
    """
    remedy = "pass model.trainable_parameters()"
    if not isinstance(parameters, Iterable):
        raise TypeError(f"{who}: takes parameters, not {describe(parameters)}: {remedy}")
    if not isinstance(parameters, Mapping):
        parameters = {str(i): p for i, p in enumerate(parameters)}
    names: dict[Parameter, str] = {}
    for name, p in parameters.items():
        if not isinstance(p, Parameter):
            raise TypeError(f"{who}: parameter {name} is {describe(p)}, no Parameter: {remedy}")
        if names.setdefault(p, name) != name:
            raise ValueError(f"{who}: parameters {names[p]} and {name} are one: pass it once")
        if trained and not p.requires_grad:
            raise ValueError(f"{who}: parameter {name} is frozen: {remedy}")
    if trained and not names:
        raise ValueError(
            f"{who}: there is nothing to train: all is frozen, or an iterator is used up"
        )
    return dict(parameters)


def why_idle(parameters: Mapping[str, Parameter]) -> str:
    """Why none of the parameters has a gradient, as an optimizer would tell."""
    if not any(p.requires_grad for p in parameters.values()):
        return (
            "all its parameters have been frozen since it was made: make it after lora.attach "
            "and the like, of model.trainable_parameters()"
        )
    return (
        "none of its parameters has a gradient: call loss.backward() after zero_grad() and before "
        "step(), on a loss that depends on them (an adapter that is not active gets none)"
    )


@our_words
def linear_schedule(peak: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """step -> lr: from 0 up to `peak` over `warmup` steps, then straight down to 0 at `steps`."""
    _check("linear_schedule", steps, warmup, peak=peak)
    return lambda step: peak * min((step + 1) / (warmup + 1), max(0.0, _left(step, steps, warmup)))


@our_words
def cosine_schedule(
    peak: float, steps: int, warmup: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """step -> lr: up to `peak` over `warmup` steps, then half a cosine down to `floor`."""
    _check("cosine_schedule", steps, warmup, peak=peak, floor=floor)

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        left = min(1.0, max(0.0, _left(step, steps, warmup)))
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * left))

    return lr


def _check(who: str, steps: int, warmup: int, **rates: float) -> None:
    whole(who, "steps", steps, 1)
    whole(who, "warmup", warmup)
    for name, rate in rates.items():
        real(who, name, rate, "[0, inf)")


def _left(step: int, steps: int, warmup: int) -> float:
    return (steps - step) / max(1, steps - warmup)


@our_words
def clip_grad_norm(parameters: Parameters, max_norm: float) -> Any:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`.

    Returns the norm before: a float, or on a device an array (), so that nothing has to wait for
    it. Gradients are replaced, not written to. An infinite `max_norm` measures, and clips nothing.
    """
    real("clip_grad_norm", "max_norm", max_norm, "(0, inf]")
    held = named("clip_grad_norm", parameters).values()
    grads = [(p, p.grad) for p in held if p.grad is not None]
    if not grads:
        return 0.0
    size = current().piece  # a large gradient is not widened all at once
    flat = (g.reshape(-1)[i : i + size] for _, g in grads for i in range(0, g.size, size))
    norm = xp.sqrt(sum((x * x).sum() for x in (piece.astype("float64") for piece in flat)))
    if not current().peek(norm <= max_norm, max_norm == math.inf):
        factor = max_norm / xp.maximum(norm, max_norm)  # one number for all
        for p, g in grads:
            p.grad = g * factor.astype(g.dtype, copy=False)
    return norm
