"""A verdict in words: what was expected and what came first, then where, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterator

from .judging import Outcome, Verdict
from .kit import shown

PRINTED = 8  # lines of what the student's code printed


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
    first = True
    for outcome in of.outcomes:
        good = outcome.points == outcome.of
        yield f"  {marks[0] if good else marks[1]} {outcome.title}" + (
            f"  ({outcome.of} points)" if outcome.of > 1 else "  (1 point)"
        )
        if not good and (first or verbose):
            yield from ("      " + line for line in failure(of, outcome, verbose))
            first = False
    if of.printed.strip():
        lines = of.printed.rstrip().splitlines()
        yield "  your code printed:"
        yield from ("    | " + line[:100] for line in lines[-PRINTED:])
    yield from ("  " + line for line in after(of))


def failure(of: Verdict, outcome: Outcome, verbose: bool = False) -> Iterator[str]:
    """One failed check: message first."""
    yield from outcome.lines
    if outcome.case and outcome.kind != "todo":
        yield "the smallest case that shows it:"
        yield from (f"    {name} = {shown(value)}" for name, value in outcome.case)
    if outcome.mistakes:
        yield f"your result equals what you get if {', or if '.join(outcome.mistakes)}"
    frames = outcome.frames if verbose else outcome.frames[-1:]
    for line, function, source in frames:
        where = f"{of.exercise.name}, line {line}"
        yield f"at {where}{f', in {function}' if function.isidentifier() else ''}: {source}"


def after(of: Verdict) -> Iterator[str]:
    """What to do next."""
    number = of.exercise.number
    if of.passed:
        yield f"passed. A solution to compare with: minilora ex solution {number}"
    elif any(outcome.kind == "todo" for outcome in of.outcomes):
        yield f"write it in {of.exercise.name}, then: minilora ex check {number}"
    else:
        yield f"next: minilora ex check {number} again, or minilora ex hint {number}"
