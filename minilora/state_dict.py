"""Arrays by name, copied into others: all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .backend import asarray, asnumpy, current, xp
from .backend.flags import quietly
from .backend.writes import wrote
from .checks import describe


def fill(
    own: Mapping[str, Any], state: Mapping[str, Any], who: str, strict: bool = True,
    then: Callable[[], object] = lambda: None) -> None:
    """Copy the arrays of `state` into those of the same name in `own`, then call `then`.

    After any exception, an interrupt or one from `then` too, `own` is as before. Raises KeyError
    for missing or unexpected names (unless strict=False), ValueError for another shape, for
    anything but numbers, and for numbers that are not finite in own's dtype.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"{who}: it takes arrays by name, not {describe(state)}")
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if strict and (missing or unexpected):
        raise KeyError(
            f"{who}: missing {missing[:5]}, unexpected {unexpected[:5]} "
            f"({len(missing)} and {len(unexpected)} in all)"
        )
    new = {}
    for name in own:
        if name in state:
            new[name] = _fitting(state[name], own[name], f"{who}: {name}")
    written = []
    try:
        for name in list(new):
            written.append((name, own[name].copy()))  # so that there are never two complete copies
            own[name][...] = new.pop(name)
        wrote(*(own[name] for name, _ in written))
        then()
    except BaseException:
        for name, old in written:
            own[name][...] = old
        raise


def _fitting(given: Any, own: Any, who: str) -> Any:
    """Convert `given` to own's dtype; ValueError if shape or numbers do not fit."""
    array = given if hasattr(given, "dtype") else np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{who} must be numbers, not {describe(given)}")
    if tuple(array.shape) != tuple(own.shape):
        raise ValueError(f"{who} is {tuple(own.shape)} here, {tuple(array.shape)} in the state")
    result = quietly(asarray, array, own.dtype)  # checked below
    if own.dtype.kind == "u" and not np.array_equal(asnumpy(result), asnumpy(array)):
        raise ValueError(f"{who} must be integers >= 0, not {describe(given)}")
    if own.dtype.kind == "f" and not current().read(xp.isfinite(result).all(), 1.0):
        problem = f"beyond {own.dtype}" if np.isfinite(asnumpy(array)).all() else "not finite"
        raise ValueError(f"{who} has numbers that are {problem}")
    return result
