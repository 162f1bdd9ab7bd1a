"""What an exercise must live up to, tried out: for those who write one."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic
from . import report as telling
from .book import CHECKS, Exercise, beside, path
from .judge import Verdict, alike, attempt, judge, judge_here
from .kit import shown
from .student import Local, same

SECONDS = 2.0  # of the processor, the most that one check may take
HINTS, WRONG = 3, 6
EXAMPLE = r"^    (\w+\(.*\)\S*) +-> +(.+)$"


def complaints(of: Exercise, names: bool = True) -> Iterator[str]:
    """What is wrong with an exercise, a sentence each; nothing where it is as it must be.

    names: of every known mistake, also whether it is told by its name, which takes most of the
    time; else every fourth one is tried.
    """
    yield from _written(of)
    for seed in range(8 if names else 1):
        verdict = judge(of, of.solution(), seed=seed)
        if not verdict.passed:
            yield f"the solution fails under seed {seed}: {_failures(verdict)}"
    verdict = judge(of, of.stub())
    for outcome in verdict.outcomes:
        if outcome.points:
            yield f"the stub passes a check: {outcome.title}"
    for function, mistake in known(of)[:: 1 if names else 4]:
        wrong = {**of.reference, function: of.wrong[function][mistake]}
        verdict = judge_here(of, wrong, told=names)
        if verdict.passed:
            yield f"a known mistake passes: {mistake}"
        elif names and verdict.mistakes != (mistake,):
            named = ", ".join(map(repr, verdict.mistakes)) or "nothing"
            yield f"a known mistake is told as {named}: {mistake}"
    verdict = judge_here(of, memorised(of), seed=1, told=False)
    if verdict.passed:
        yield "a memorised answer passes under another seed"


def known(of: Exercise) -> list[tuple[str, str]]:
    """The known mistakes: (function, mistake)."""
    return [(function, mistake) for function, held in of.wrong.items() for mistake in held]


def _written(of: Exercise) -> Iterator[str]:
    if len(of.hints) != HINTS:
        yield f"it has {len(of.hints)} hints, not {HINTS}"
    if len(known(of)) < WRONG:
        yield f"it has {len(known(of))} known mistakes: at least {WRONG} are needed"
    examples = re.findall(EXAMPLE, of.statement, re.M)
    if not examples:
        yield "its statement shows no example: a line f(x) -> y, four spaces in"
    space: dict[str, Any] = {}
    exec(of.solution(), space)
    for call, result in examples:
        try:
            got, told = (np.asarray(eval(text, space), float) for text in (call, result))
        except Exception as error:
            yield f"its example raises {type(error).__name__}: {call}"
        else:
            if not alike(got, told):
                yield f"its example is not true: {call} is {shown(got)}"
    if re.search(rf"{CHECKS}|SOLUTION", of.stub()):
        yield "its stub holds a marker"
    for title in (check.title for check in of.checks):
        if not title:
            yield "a check has no docstring, which is its title"


def _failures(verdict: Verdict) -> str:
    return "; ".join(
        f"{outcome.title}: {' '.join(outcome.lines)}"
        for outcome in verdict.outcomes if outcome.points < outcome.of
    )


def memorised(of: Exercise) -> Mapping[str, Callable[..., Any]]:
    """Functions that know the answers to what seed 0 draws, and give the last one to all else."""
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
    """Processor time of each check, of the reference."""

    student, took = Local(of, beside(of, of.reference)), {}
    for check in of.checks:
        began = time.process_time()
        attempt(of, check, student, 0)
        took[check.title] = time.process_time() - began
    return took


def messages(of: Exercise) -> Iterator[tuple[str, str]]:
    """Each known mistake, and what its writer would be told of the first check that it fails."""
    for function, mistake in known(of):
        verdict = judge_here(of, {**of.reference, function: of.wrong[function][mistake]})
        failed = next(o for o in verdict.outcomes if o.points < o.of)
        yield mistake, "\n".join([failed.title, *telling.failure(verdict, failed)])


def new(name: str) -> Path:
    """A file to write an exercise of one's own in, made from 02: "14_name". Raises ValueError."""
    if not re.fullmatch(r"\d\d_[a-z_]+", name):
        raise ValueError(f"ex dev new needs a number and a name, such as 14_name, not {name!r}")
    file = Path(f"ex{name}.py").resolve()
    if file.exists():
        raise ValueError(f"{file} is there: give another name")
    with atomic.writing(file) as out:
        out.write(path("02").read_bytes())
    return file
