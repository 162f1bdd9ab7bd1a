"""What an exercise is written with: checks over drawn cases, and the messages of their failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from ..docstrings import docstring
from .wire import Opaque

Case = Mapping[str, Any]


class Wrong(AssertionError):
    """A failed check. Its lines: what was expected, what came, how far apart they are.

    share: the gap, as a share of the largest expected number; 1.0 where that has no meaning.
    """

    def __init__(self, *lines: str, share: float = 1.0) -> None:
        super().__init__("\n".join(lines))
        self.lines, self.share = lines, share


@dataclass(frozen=True)
class Check:
    """A property: `run(student, **case)` raises Wrong if it does not hold.

    title: the property in a sentence. cases: each of them draws the arguments by name; a failure
    shows those without a leading _. points: its worth. examples: the number of cases in all.
    """

    title: str
    cases: tuple[SearchStrategy[Case], ...]
    points: int
    examples: int
    run: Callable[..., None]


def check(
    *cases: SearchStrategy[Case], points: int = 1, examples: int = 30
) -> Callable[[Callable[..., None]], Check]:
    """Make a Check of a function `(student, **case)`. Its docstring's first line is the title.

    Each kind of case gets its share of the examples: what only one kind shows is always seen.
    """

    def decorate(run: Callable[..., None]) -> Check:
        title = docstring(run).partition("\n")[0].rstrip(".")
        return Check(title, cases, points, examples, run)

    return decorate


def sizes(least: int = 1, most: int = 4) -> SearchStrategy[int]:
    """Draw a dimension."""
    return st.integers(least, most)


def generators() -> SearchStrategy[np.random.Generator]:
    """Draw a seeded NumPy generator. It fills arrays whose shapes were drawn before."""
    return st.integers(0, 2**32 - 1).map(np.random.default_rng)


def small(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return a float64 array of the integers -3 to 3 without 0: easy to read in a message."""
    return rng.choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], size=shape)


@dataclass(frozen=True)
class Numbers:
    """Fills arrays: `numbers(2, 3)`. easy: with small integers, otherwise with any numbers."""

    easy: bool
    rng: np.random.Generator

    def __call__(self, *shape: int) -> np.ndarray:
        array = small(self.rng, *shape)
        if self.easy:
            return array
        zeros = self.rng.choice([0.0, -0.0], size=shape)
        kind = self.rng.random(shape)
        return np.where(kind < 0.6, self.rng.normal(size=shape), np.where(kind < 0.8, zeros, array))


def numbers(easy: bool | None = None) -> SearchStrategy[Numbers]:
    """Draw what fills arrays. easy: see Numbers; None: rarely.

    A failing case is made of small integers if it can be: they are easy to read in a message. All
    other arrays have numbers with all digits of a float, and numbers that are 0.0 or -0.0.
    """
    rarely = st.integers(0, 4).map(lambda n: n == 0) if easy is None else st.just(easy)
    return st.tuples(rarely, generators()).map(lambda drawn: Numbers(*drawn))


def scalars(*simple: float, low: float = 0.1, high: float = 20.0) -> SearchStrategy[float]:
    """Draw one of these simple numbers, or one with all digits of a float from low to high."""
    any_digits = generators().map(lambda rng: float(rng.uniform(low, high)))
    return st.sampled_from(simple) | any_digits


def parts(value: Any, *names: str) -> tuple[Any, ...]:
    """Return the members of a tuple or list. Raises Wrong unless there is one for each name."""
    wanted = f"expected {len(names)} values to be returned: {', '.join(names)}"
    if not isinstance(value, tuple | list):
        raise Wrong(wanted, f"got      {described(value)}")
    if len(value) != len(names):
        raise Wrong(wanted, f"got      {len(value)} of them")
    return tuple(value)


def equal(
    got: Any, expected: Any, what: str = "the result", rtol: float | None = None, size: Any = 0.0
) -> None:
    """Raise Wrong unless `got` equals the number or array `expected`, up to rounding.

    rtol: the largest gap, relative to the largest |expected| and |size|; None: 256 eps of
    expected's dtype, and 0 for integers. size: the terms of a sum in which they can cancel.
    """
    number(got, np.shape(expected), what)
    a, b = np.asarray(got), np.asarray(expected)
    a = a.astype(np.float64) if a.dtype == object else a  # an integer of more than 64 bits
    if rtol is None:
        rtol = 256 * float(np.finfo(b.dtype).eps) if b.dtype.kind == "f" else 0.0
    wide = np.result_type(a.dtype, b.dtype, np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(wide) - b.astype(wide))
    gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, gap)  # inf - inf is not 0
    top = np.max(np.abs(b[np.isfinite(b)]), initial=float(np.max(np.abs(size), initial=0.0)))
    if not np.all(gap <= rtol * top):
        digits = next((n for n in (4, 8) if shown(a, n) != shown(b, n)), 17)
        raise Wrong(
            f"expected {what} = {shown(b, digits)}", f"got      {what} = {shown(a, digits)}",
            f"gap      {_gap(gap, a)}",
            *_transposed(a, b, rtol * top),
            share=float(np.max(gap)) / top if top and np.all(np.isfinite(gap)) else 1.0,
        )


def _transposed(a: np.ndarray, b: np.ndarray, most: float) -> tuple[str, ...]:
    same = a.ndim == 2 and a.shape[0] == a.shape[1] and np.all(np.abs(a.T - b) <= most)
    return ("your result is the transpose of the expected one",) if same else ()


def _gap(gap: np.ndarray, got: np.ndarray) -> str:
    if np.all(np.isfinite(gap)):
        return f"up to {np.max(gap):.3g}"
    return "not finite" if not np.all(np.isfinite(got)) else "infinite"


def number(got: Any, shape: tuple[int, ...], what: str = "the result") -> None:
    """Raise Wrong unless `got` is a number, or an array of numbers, of this shape."""
    if got is None:
        raise Wrong(f"expected {what}", "got      None: is there a `return`?")
    if not isinstance(got, np.ndarray | np.generic | int | float):
        raise Wrong(
            f"expected {what} as an array of shape {shape}" if shape
            else f"expected {what} as a number",
            f"got      {described(got)}",
        )
    if np.shape(got) != shape:
        raise Wrong(
            f"expected {what} of shape {shape}" if shape else f"expected {what} as a number",
            f"got      {what} of shape {np.shape(got)} = {shown(got)}",
        )


def holds(true: Any, expected: str, got: str = "") -> None:
    """Raise Wrong with these words unless `true`."""
    if not true:
        raise Wrong(f"expected {expected}", *([f"got      {got}"] if got else []))


def copied(value: Any) -> Any:
    """Return the value with copies of its arrays."""
    if isinstance(value, list | tuple):
        return type(value)(map(copied, value))
    return value.copy() if isinstance(value, np.ndarray) else value


def described(value: Any) -> str:
    """Return a short description of a value of a wrong type."""
    if value is None:
        return "None: is there a `return`?"
    if isinstance(value, np.ndarray):
        return f"one array of shape {value.shape}"
    return f"a value of type {kind(value)}: {shown(value)}"


def kind(value: Any) -> str:
    """Return the name of a value's type, as the student's code has it."""
    return value.kind if isinstance(value, Opaque) else type(value).__name__


def shown(value: Any, digits: int = 4) -> str:
    """Return a value as text for a message: short, rounded, an array on one line."""
    if isinstance(value, np.ndarray | np.generic):
        text = np.array2string(
            np.asarray(value), precision=digits, threshold=24, edgeitems=2, separator=", ",
            floatmode="maxprec", max_line_width=10**6,
        )
        return " ".join(text.replace("\n", " ").split()).replace("[ ", "[")
    if isinstance(value, np.random.Generator):
        return "a NumPy generator"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(shown, value)) + (
            "," if type(value) is tuple and len(value) == 1 else ""
        )
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) < 200 else text[:197] + "..."
