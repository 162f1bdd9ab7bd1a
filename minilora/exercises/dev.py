"""Tests of an exercise, for its authors: `minilora ex dev`."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic
from . import report
from .book import CHECKS, Exercise, path
from .judge import Verdict, alike, attempt, judge, judge_here
from .kit import shown
from .student import Local, same

HINTS, WRONG, SEEDS = 3, 6, 8
FEW, CASES = 10, 12  # without `names`: every so many mistakes, and so many cases of a check
EXAMPLE = r"^    (\w+\(.*\)\S*) +-> +(.+)$"


def complaints(of: Exercise, names: bool = True) -> Iterator[str]:
    """Yield a sentence for each fault of an exercise.

    names: try SEEDS seeds and every known mistake, test that the verdict names it, and try a
    memorised answer, which takes most of the time; otherwise one seed, every FEW-th mistake, and
    CASES cases of each check at most.
    """
    yield from _written(of)
    if not names:
        few = (replace(check, examples=min(CASES, check.examples)) for check in of.checks)
        of = replace(of, checks=tuple(few))
    for seed in range(SEEDS if names else 1):
        verdict = judge(of, of.solution(), seed=seed)
        if not verdict.passed:
            yield f"the solution fails under seed {seed}: {_failures(verdict)}"
    verdict = judge(of, of.stub(), explain=names)
    for outcome in verdict.outcomes:
        if outcome.points:
            yield f"the stub passes a check: {outcome.title}"
    for function, mistake in known(of)[:: 1 if names else FEW]:
        wrong = {**of.reference, function: of.wrong[function][mistake]}
        verdict = judge_here(of, wrong, explain=names)
        if verdict.passed:
            yield f"a known mistake passes: {mistake}"
        elif names and verdict.mistakes != (mistake,):
            named = ", ".join(map(repr, verdict.mistakes)) or "nothing"
            yield f"the verdict names {named} for a known mistake: {mistake}"
    if names and judge_here(of, memorised(of), seed=1, explain=False).passed:
        yield "a memorised answer passes under another seed"


def known(of: Exercise) -> list[tuple[str, str]]:
    """Return the known mistakes: (function, mistake)."""
    return [(function, mistake) for function, bank in of.wrong.items() for mistake in bank]


def _written(of: Exercise) -> Iterator[str]:
    if len(of.hints) != HINTS:
        yield f"the exercise has {len(of.hints)} hints, not {HINTS}"
    if len(known(of)) < WRONG:
        yield f"the exercise has {len(known(of))} known mistakes: it needs at least {WRONG}"
    examples = re.findall(EXAMPLE, of.statement, re.M)
    if not examples:
        yield "the statement has no example: a line f(x) -> y, indented by four spaces"
    space: dict[str, Any] = {}
    exec(of.solution(), space)
    for call, result in examples:
        try:
            got, stated = (np.asarray(eval(text, space), float) for text in (call, result))
        except Exception as error:
            yield f"an example raises {type(error).__name__}: {call}"
        else:
            if not alike(got, stated):
                yield f"an example is wrong: {call} is {shown(got)}"
    if re.search(rf"{CHECKS}|SOLUTION", of.stub()):
        yield "the stub contains a marker"
    for title in (check.title for check in of.checks):
        if not title:
            yield "a check has no title: write a docstring"


def _failures(verdict: Verdict) -> str:
    return "; ".join(
        f"{outcome.title}: {' '.join(outcome.lines)}"
        for outcome in verdict.outcomes if outcome.points < outcome.of
    )


def memorised(of: Exercise) -> Mapping[str, Callable[..., Any]]:
    """Return functions that know the answers for seed 0, and give the last of them otherwise."""
    table: dict[str, list[tuple[tuple[Any, ...], Any, tuple[Any, ...]]]] = {}

    def learning(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            before = copy.deepcopy(args)
            value = of.reference[name](*args)
            table.setdefault(name, []).append((before, value, args))
            return value

        return call

    judge_here(of, {name: learning(name) for name in of.functions}, seed=0)

    def knowing(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            learned = table.get(name) or [((), None, ())]
            return next((v for a, v, _ in learned if same(a, args)), learned[-1][1])

        return call

    return {name: knowing(name) for name in of.functions}


def seconds(of: Exercise) -> dict[str, float]:
    """Return the processor time of each check on the reference."""
    student, times = Local(of, of.reference), {}
    for check in of.checks:
        start = time.process_time()
        attempt(of, check, student, 0)
        times[check.title] = time.process_time() - start
    return times


def messages(of: Exercise) -> Iterator[tuple[str, str]]:
    """Yield each known mistake, and the message of the first check that it fails."""
    for function, mistake in known(of):
        verdict = judge_here(of, {**of.reference, function: of.wrong[function][mistake]})
        failed = next(o for o in verdict.outcomes if o.points < o.of)
        yield mistake, "\n".join([failed.title, *report.failure(verdict, failed)])


def new(name: str) -> Path:
    """Write a copy of exercise 02 as the start of a new exercise, named like "14_name".

    Raises ValueError for another form of name, or an existing file.
    """
    if not re.fullmatch(r"\d\d_[a-z_]+", name):
        raise ValueError(f"ex dev new needs a number and a name, such as 14_name, not {name!r}")
    file = Path(f"ex{name}.py").resolve()
    if file.exists():
        raise ValueError(f"{file} exists already: choose another name")
    with atomic.writing(file) as out:
        out.write(path("02").read_bytes())
    return file
