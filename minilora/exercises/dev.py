"""Tests of an exercise, for its authors: `minilora ex dev`."""

from __future__ import annotations

import copy
import inspect
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
from .judge import Verdict, attempt, judge, judge_here, on_cases
from .kit import Case, Check, shown
from .naming import alike
from .student import Local, same

HINTS, WRONG, SEEDS = 3, 6, 20  # SEEDS: the most
FEW, CASES = 10, 12  # without `names`: every so many mistakes, and so many cases of a check
EXAMPLE = r"^    (\w+\(.*\)\S*) +-> +(.+)$"
Functions = Mapping[str, Callable[..., Any]]


def complaints(of: Exercise, names: bool = True, seeds: int | None = None) -> Iterator[str]:
    """Yield a sentence for each fault of an exercise.

    names: try every known mistake under `tried(of, seeds)` seeds, test that the verdict names it,
    and try a memorised answer, which takes most of the time; otherwise one seed, every FEW-th
    mistake, and CASES cases of each check at most.
    """
    yield from _written(of)
    yield from _untied(of)
    if not names:
        few = (replace(check, examples=min(CASES, check.examples)) for check in of.checks)
        of = replace(of, checks=tuple(few))
    verdict = judge(of, of.solution())
    if not verdict.passed:
        yield f"the solution fails under seed 0: {_failures(verdict)}"
    verdict = judge(of, of.stub(), explain=names)
    for outcome in verdict.outcomes:
        if outcome.points:
            yield f"the stub passes a check: {outcome.title}"
    drawn: dict[int, list[list[Case]]] = {
        seed: [cases(of, check, seed) for check in of.checks]
        for seed in range(tried(of, seeds) if names else 1)
    }
    for seed, every in drawn.items():
        if failed := failures(of, of.reference, every):
            yield f"the solution fails under seed {seed}: {'; '.join(failed)}"
    for what, functions in idle(of):
        for title in {check.title for check in of.checks} - failures(of, functions, drawn[0]):
            yield f"{what} passes a check: {title}"
    toothless = {check.title for check in of.checks}
    for function, mistake in known(of)[:: 1 if names else FEW]:
        wrong = {**of.reference, function: of.wrong[function][mistake]}
        first = failures(of, wrong, drawn[0])
        toothless -= first
        if not first:
            yield f"a known mistake passes: {mistake}"
        for seed in [*drawn][1:]:
            for title in failures(of, wrong, drawn[seed]) ^ first:
                yield f"a check fails under seed 0 or {seed}, but not both: {title}: {mistake}"
        if names and mistake not in (named := judge_here(of, wrong).mistakes):
            said = ", ".join(map(repr, named)) or "nothing"
            yield f"the verdict names {said} for a known mistake: {mistake}"
    if names:
        yield from (f"no known mistake fails a check: {title}" for title in toothless)
        if judge_here(of, memorised(of), seed=1, explain=False).passed:
            yield "a memorised answer passes under another seed"


def tried(of: Exercise, seeds: int | None = None) -> int:
    """Return how many seeds are tried: so many (None: SEEDS), or what the exercise can afford."""
    return min(seeds or SEEDS, of.seeds)


def cases(of: Exercise, check: Check, seed: int) -> list[Case]:
    """Return the cases on which a check runs under this seed."""
    drawn: list[Case] = []
    on_cases(of, check, seed, check.examples, drawn.append)
    return drawn


def failures(of: Exercise, functions: Functions, every: list[list[Case]]) -> set[str]:
    """Return the titles of the checks that fail on one of their cases."""
    student, failed = Local(of, functions), set[str]()
    for check, cases in zip(of.checks, every):
        student.known.clear()
        for case in cases:
            try:
                check.run(student, **case)
            except Exception:
                failed.add(check.title)
                break
    return failed


def idle(of: Exercise) -> Iterator[tuple[str, Functions]]:
    """Yield answers that do nothing, with their names: each returns a constant or an argument."""
    constants: list[Any] = [None, 0, 1, 0.0, 1.0, 0.5, "", (), [], {}, True, np.zeros(1)]
    changes: dict[str, Callable[[Any], Any]] = {
        "": lambda value: value, ", without signs": np.abs, ", all zeros": np.zeros_like,
        ", all ones": np.ones_like, " in a list": lambda value: [value],
    }
    for one in constants:
        yield f"an answer that returns {one!r}", dict.fromkeys(of.functions, _constant(one))
    for i in range(max(len(inspect.signature(f).parameters) for f in of.reference.values())):
        for what, change in changes.items():
            answer = f"an answer that returns argument {i + 1}{what}"
            yield answer, dict.fromkeys(of.functions, _argument(i, change))


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *_: value


def _argument(i: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *args: change(args[i])


def _untied(of: Exercise) -> Iterator[str]:
    """Sentences of the statement that belong to no check, and words that are in no sentence."""
    words = [*of.explains, *(one for ties in of.promises.values() for one in ties)]
    said = sentences(of.statement)
    for sentence in said:
        if not any(one in sentence for one in words):
            yield f"no check promises this sentence, and EXPLAINS does not name it: {sentence}"
    for one in words:
        if not any(one in sentence for sentence in said):
            yield f"no sentence of the statement has these words of PROMISES or EXPLAINS: {one}"
    for title in {check.title for check in of.checks} - {check.title for check in of.promises}:
        yield f"PROMISES ties no sentence to a check: {title}"


def sentences(statement: str) -> list[str]:
    """Return the sentences of a statement without its examples, which are tried."""
    text = re.sub(EXAMPLE, "", statement.partition(". ")[2], flags=re.M)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [one for part in paragraphs for one in re.split(r"(?<=[.?])\s+(?=[A-Z(])", part) if one]


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
            got, stated = (_plain(eval(text, space)) for text in (call, result))
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


def _plain(value: Any) -> Any:
    """Return a number or array as floats, and a str as it is."""
    return value if isinstance(value, str) else np.asarray(value, float)


def _failures(verdict: Verdict) -> str:
    return "; ".join(
        f"{outcome.title}: {' '.join(outcome.lines)}"
        for outcome in verdict.outcomes if outcome.points < outcome.of
    )


def memorised(of: Exercise) -> Functions:
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
