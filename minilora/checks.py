"""What an argument has to be, and the words in which another is refused."""

from __future__ import annotations

import math
import reprlib
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

_WORDS = {  # an interval without an end is said in words
    "(-inf, inf)": "a finite number",
    "[0, inf)": "finite and not negative",
    "(0, inf)": "finite and positive",
    "(0, inf]": "positive",
}


def whole(who: str, name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """`value` as an int, if it is a whole number (NumPy's too, no bool, no float) in the bounds.

    Raises ValueError otherwise: "who: name must be a whole number from 1, not 2.5".
    """
    if not isinstance(value, bool) and isinstance(value, Integral):
        number = int(value)
        if number >= least and (most is None or number <= most):
            return number
    span = f"from {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{who}: {name} must be a whole number {span}, not {describe(value)}")


def real(who: str, name: str, value: Any, within: str = "(-inf, inf)") -> float:
    """`value` as a float, if it is a number (NumPy's too, no bool) in an interval like "[0, 1)".

    Raises ValueError otherwise: "who: name must be in [0, 1), not nan".
    """
    low, high = (float(end) for end in within[1:-1].split(","))
    closed = {low: within[0] == "[", high: within[-1] == "]"}  # does an end belong to it?
    if not isinstance(value, bool) and isinstance(value, Real):
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond every float
            number = math.nan
        if closed.get(number, low < number < high):
            return number
    words = _WORDS.get(within, f"in {within}")
    raise ValueError(f"{who}: {name} must be {words}, not {describe(value)}")


def choice(who: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raises ValueError where `value` is none of those that are known."""
    if value not in known:
        raise ValueError(f"{who}: {name} is one of {', '.join(known)}, not {value!r}")


def a(kind: str) -> str:
    """The kind with its article: "a model", "an adapter"."""
    return f"an {kind}" if kind[:1].lower() in tuple("aeiou") else f"a {kind}"


def describe(value: Any) -> str:
    """A value as an error says it: on one line, short, and with its type where it is no number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        kind, shown = type(value).__name__, reprlib.repr(value)
        cut = not isinstance(value, str | bytes | list | tuple | dict) and "..." in shown
        return f"the {kind}" if cut or "\n" in shown else f"the {kind} {shown}"
    return reprlib.repr(getattr(value, "item", lambda: value)())


def warn(message: str) -> None:
    """Warn with the line of the user's code that called into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


_INSIDE = __name__.split(".")[0], "contextlib", "functools"
