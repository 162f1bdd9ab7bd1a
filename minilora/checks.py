"""Checks of arguments: a valid value is returned as a Python number, another is refused."""

from __future__ import annotations

import math
import reprlib
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

_WORDS = {  # an interval with an infinite end reads better in words
    "(-inf, inf)": "a finite number",
    "[0, inf)": "finite and not negative",
    "(0, inf)": "finite and positive",
    "(0, inf]": "positive",
}


def integer(who: str, name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return `value` as an int if it is an integer (NumPy's too) from `least` to `most`.

    Otherwise, and for a bool or a float, raise ValueError: "who: name must be an integer >= 1, not
    2.5".
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        number = int(value)
        if number >= least and (most is None or number <= most):
            return number
    span = f">= {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{who}: {name} must be an integer {span}, not {describe(value)}")


def real(who: str, name: str, value: Any, within: str = "(-inf, inf)") -> float:
    """Return `value` as a float if it is a number (NumPy's too) in an interval such as "[0, 1)".

    Otherwise, and for a bool, raise ValueError: "who: name must be in [0, 1), not nan".
    """
    low, high = (float(end) for end in within[1:-1].split(","))
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:  # an integer too large for a float
            number = math.nan
        from_low = number >= low if within[0] == "[" else number > low
        if from_low and (number <= high if within[-1] == "]" else number < high):
            return number
    words = _WORDS.get(within, f"in {within}")
    raise ValueError(f"{who}: {name} must be {words}, not {describe(value)}")


def choice(who: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ValueError if `value` is not among the known ones."""
    if value not in known:
        raise ValueError(f"{who}: {name} must be one of {', '.join(known)}, not {value!r}")


def a(kind: str) -> str:
    """Return the kind with its article: "a model", "an adapter"."""
    return f"an {kind}" if kind[:1].lower() in tuple("aeiou") else f"a {kind}"


def describe(value: Any) -> str:
    """Describe a value for an error: short, on one line, with its type unless it is a number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        kind, text = type(value).__name__, reprlib.repr(value)
        cut = not isinstance(value, str | bytes | list | tuple | dict) and "..." in text
        return f"the {kind}" if cut or "\n" in text else f"the {kind} {text}"
    return reprlib.repr(getattr(value, "item", lambda: value)())


def warn(message: str) -> None:
    """Warn with the line of the user's code that called into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_INSIDE = __name__.split(".")[0], "contextlib", "functools"
