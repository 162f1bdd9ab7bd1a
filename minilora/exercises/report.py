"""A verdict as text: each check, the first failure in detail, and the next command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .judge import Outcome, Verdict
from .kit import shown

PRINTED = 8  # lines of the student's output
ALL = ("todo", "SyntaxError", "missing", "imports")  # kinds of failures that every check has
REMEDIES = {  # an error message of Python or NumPy -> a remedy for a beginner
    "cannot access local variable|referenced before assignment": "a function that assigns to a "
    "name has its own variable of that name: give the new value another name",
    "Cannot interpret '.*' as a data type": "np.zeros, np.ones and np.empty take one shape, as a "
    "tuple: np.zeros((2, 3))",
    "truth value of an array": "comparing arrays gives an array: .all() turns it into one answer",
    "matmul: .* mismatch in its core dim": "in x @ y, x needs as many columns as y has rows: "
    "print both shapes",
}


def verdict(of: Verdict, *, verbose: bool = False, unicode: bool = True) -> str:
    """Return the text of a verdict: a line for each check, and the first failure in detail.

    verbose: every failure in detail, with all frames of the student's code.
    unicode: use marks beyond ASCII.
    """
    return "\n".join(_lines(of, verbose, "✓✗" if unicode else "+x"))


def _lines(of: Verdict, verbose: bool, marks: str) -> Iterator[str]:
    exercise = of.exercise
    yield f"{exercise.number} {exercise.title}: {of.points} of {exercise.points} points"
    first, hidden = True, 0
    for outcome in of.outcomes:
        good = outcome.points == outcome.of
        yield f"  {marks[0] if good else marks[1]} {outcome.title}" + (
            f"  ({outcome.of} points)" if outcome.of > 1 else "  (1 point)"
        )
        if not good and (first or verbose):
            yield from ("      " + line for line in failure(of, outcome, verbose))
            first = False
        elif not good:
            hidden += outcome.kind not in ALL
    if of.printed.strip():
        lines = of.printed.rstrip().splitlines()
        cut = f", the last {PRINTED} of {len(lines)} lines" if len(lines) > PRINTED else ""
        yield f"  your code printed{' in the smallest case' if of.of_case else ''}{cut}:"
        yield from ("    | " + line[:100] for line in lines[-PRINTED:])
    if hidden:
        yield "  only the first failure is shown; to see all: " \
              f"minilora ex check {exercise.number} -v"
    yield "  " + _next(of)


def failure(of: Verdict, outcome: Outcome, verbose: bool = False) -> Iterator[str]:
    """Yield the lines about one failed check: the message first."""
    yield from outcome.lines
    yield from (remedy for text, remedy in REMEDIES.items() if re.search(text, outcome.lines[0]))
    if outcome.case and outcome.kind != "todo":
        yield "the smallest case that fails:"
        yield from (f"    {name} = {shown(value)}{_dtype(value)}" for name, value in outcome.case)
    if outcome.mistakes:
        yield why(outcome.mistakes)
    frames = outcome.frames if verbose else outcome.frames[-1:]
    for line, function, source in frames:
        where = f"{of.exercise.name}, line {line}"
        yield f"at {where}{f', in {function}' if function.isidentifier() else ''}: {source}"


def why(mistakes: Iterable[str]) -> str:
    """Return known mistakes as the reason of a failure."""
    return f"this is what you get if {', or if '.join(mistakes)}"


def _dtype(value: Any) -> str:
    """The dtype of an array, unless it is a usual one."""
    kind = value.dtype if isinstance(value, np.ndarray) else None
    return "" if kind is None or kind.kind in "ib" or kind == np.float64 else f" in {kind}"


def _next(of: Verdict) -> str:
    number = of.exercise.number
    if of.passed:
        return f"passed. To compare with a solution: minilora ex solution {number}"
    if any(outcome.kind == "todo" for outcome in of.outcomes):
        return f"write it in {of.exercise.name}, then: minilora ex check {number}"
    return f"next: minilora ex check {number} again, or minilora ex hint {number}"
