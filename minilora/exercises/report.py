"""A verdict in words: what was expected and what came first, then where, why, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .judge import Outcome, Verdict
from .kit import shown

PRINTED = 8  # lines of what the student's code printed
ALL = ("todo", "SyntaxError", "missing", "imports")  # kinds that stop every check alike
REMEDIES = {  # what Python or NumPy says -> what a beginner can do about it
    "cannot access local variable|referenced before assignment": "a name that a function "
    "assigns to is its own, and empty up to there: give the new value another name",
    "Cannot interpret '.*' as a data type": "np.zeros, np.ones and np.empty take one shape, as a "
    "tuple: np.zeros((2, 3))",
    "truth value of an array": "comparing arrays gives an array: .all() makes one answer of it",
    "matmul: .* mismatch in its core dim": "in x @ y, x needs as many columns as y has rows: "
    "print both shapes",
}


def verdict(of: Verdict, *, verbose: bool = False, unicode: bool = True) -> str:
    """The whole verdict: a line for each check, and the first failure told.

    verbose: every failure told, and all frames of the student's code.
    unicode: marks beyond ASCII.
    """
    told = verbose_lines(of, verbose, "✓✗" if unicode else "+x")
    return "\n".join(told)


def verbose_lines(of: Verdict, verbose: bool, marks: str) -> Iterator[str]:
    exercise = of.exercise
    yield f"{exercise.number} {exercise.title}: {of.points} of {exercise.points} points"
    first, untold = True, 0
    for outcome in of.outcomes:
        good = outcome.points == outcome.of
        yield f"  {marks[0] if good else marks[1]} {outcome.title}" + (
            f"  ({outcome.of} points)" if outcome.of > 1 else "  (1 point)"
        )
        if not good and (first or verbose):
            yield from ("      " + line for line in failure(of, outcome, verbose))
            first = False
        elif not good:
            untold += outcome.kind not in ALL
    if of.printed.strip():
        lines = of.printed.rstrip().splitlines()
        cut = f", the last {PRINTED} of {len(lines)} lines" if len(lines) > PRINTED else ""
        yield f"  your code printed{' in the smallest case' if of.of_case else ''}{cut}:"
        yield from ("    | " + line[:100] for line in lines[-PRINTED:])
    if untold:
        yield f"  the first is told; all of them: minilora ex check {exercise.number} -v"
    yield from ("  " + line for line in after(of))


def failure(of: Verdict, outcome: Outcome, verbose: bool = False) -> Iterator[str]:
    """One failed check: message first."""
    yield from outcome.lines
    yield from (remedy for said, remedy in REMEDIES.items() if re.search(said, outcome.lines[0]))
    if outcome.case and outcome.kind != "todo":
        yield "the smallest case that shows it:"
        yield from (f"    {name} = {shown(value)}{_dtype(value)}" for name, value in outcome.case)
    if outcome.mistakes:
        yield why(outcome.mistakes)
    frames = outcome.frames if verbose else outcome.frames[-1:]
    for line, function, source in frames:
        where = f"{of.exercise.name}, line {line}"
        yield f"at {where}{f', in {function}' if function.isidentifier() else ''}: {source}"


def why(mistakes: Iterable[str]) -> str:
    """Known mistakes, as a reason."""
    return f"this is what you get if {', or if '.join(mistakes)}"


def _dtype(value: Any) -> str:
    """Of an array, where it is not the usual."""
    kind = value.dtype if isinstance(value, np.ndarray) else None
    return "" if kind is None or kind.kind in "ib" or kind == np.float64 else f" in {kind}"


def after(of: Verdict) -> Iterator[str]:
    """What to do next."""
    number = of.exercise.number
    if of.passed:
        yield f"passed. A solution to compare with: minilora ex solution {number}"
    elif any(outcome.kind == "todo" for outcome in of.outcomes):
        yield f"write it in {of.exercise.name}, then: minilora ex check {number}"
    else:
        yield f"next: minilora ex check {number} again, or minilora ex hint {number}"
