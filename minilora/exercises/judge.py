"""A student's file, judged: every check over drawn cases, the smallest that fails, its mistake."""

from __future__ import annotations

import ast
import contextlib
import itertools
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from .book import Exercise, beside, mistaken
from .kit import Case, Check, Wrong
from .student import LIMITS, Called, Halted, Limits, Local, Raised, Remote, Student

HALTS = 2  # of a file's process, after which no more is tried
CASES = 20  # of a failed check, on which a known mistake has to agree with the student


@dataclass(frozen=True)
class Seen:
    """One drawn case of a check, and what the student's functions gave."""

    check: Check
    case: Case
    calls: list[Called]


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    title: str
    points: int
    of: int
    lines: tuple[str, ...] = ()  # what was expected and what came
    case: tuple[tuple[str, Any], ...] = ()  # the smallest failing arguments
    kind: str = ""  # of an exception, "todo" or "halted"
    frames: tuple[tuple[int, str, str], ...] = ()  # (line, function, source) of the student's file
    mistakes: tuple[str, ...] = ()  # known ones that give the same results everywhere
    seen: tuple[Seen, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Verdict:
    """What became of a file: a check each."""

    exercise: Exercise
    outcomes: tuple[Outcome, ...]
    printed: str = ""
    of_case: bool = False  # is what was printed that of the first failure's smallest case?

    @property
    def points(self) -> int:
        return sum(outcome.points for outcome in self.outcomes)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """The known mistakes that explain a failed check."""
        return tuple(dict.fromkeys(one for outcome in self.outcomes for one in outcome.mistakes))

    @property
    def passed(self) -> bool:
        return self.points == self.exercise.points


def judge(exercise: Exercise, source: str, *, seed: int = 0, limits: Limits = LIMITS) -> Verdict:
    """Judge a student's source, in a process of its own. The same seed draws the same cases."""
    problem = _unfit(exercise, source)
    if problem is not None:
        return Verdict(exercise, _none(exercise, problem))
    printed = ""
    open_: list[Remote] = []

    def student() -> Remote:
        if not open_:
            open_.append(Remote(exercise, source, limits))
        return open_[0]

    outcomes: list[Outcome] = []
    try:
        for check in exercise.checks:
            if sum(outcome.kind == "halted" for outcome in outcomes) == HALTS:
                lines = ("not run: the checks before it did not come to an end",)
                outcomes.append(_failed(check, kind="skipped", lines=lines))
                continue
            try:
                outcomes.append(attempt(exercise, check, student(), seed))
            except Raised as error:  # in loading
                return Verdict(exercise, _none(exercise, _raised(error, "loading it")), printed)
            except Halted as halted:
                if not open_:
                    problem = {"kind": "halted", "lines": (f"running the file: {halted}",)}
                    return Verdict(exercise, _none(exercise, problem), printed)
                outcomes.append(_failed(check, kind="halted", lines=(str(halted),)))
                last = open_.pop()
                last.close()
                printed = last.printed() or printed
        alone = _printed_for(outcomes, *open_)
    finally:
        for last in open_:
            last.close()
            printed = last.printed() or printed
    return Verdict(exercise, named(exercise, outcomes), alone or printed, bool(alone))


def _printed_for(outcomes: Iterable[Outcome], student: Remote | None = None) -> str:
    """What the student's code prints in the smallest case of the first failure, run once more."""
    first = next((one.seen[0] for one in outcomes if not one.points and one.seen), None)
    if student is None or first is None or not (before := student.printed()):
        return ""
    student.calls = []
    with contextlib.suppress(Wrong, Raised, Halted):
        first.check.run(student, **first.case)
    return student.printed()[len(before) :]


def judge_here(
    exercise: Exercise, written: Mapping[str, Any], *, seed: int = 0, told: bool = True
) -> Verdict:
    """Judge functions of this process: references and known mistakes. No limits.

    told: find the smallest failing cases and the mistakes' names, which takes most of the time;
    else the first failed check is the last.
    """
    student = Local(exercise, beside(exercise, written))
    outcomes: list[Outcome] = []
    for check in exercise.checks:
        outcomes.append(attempt(exercise, check, student, seed, told))
        if not (told or outcomes[-1].points):
            return Verdict(exercise, tuple(outcomes))
    return Verdict(exercise, named(exercise, outcomes))


def attempt(
    exercise: Exercise, check: Check, student: Student, seed_: int, told: bool = True
) -> Outcome:
    """One check on drawn cases. Raises Halted where the student's process ends."""
    seen: list[Seen] = []

    def run(case: Case) -> None:
        student.calls = []
        seen.append(Seen(check, case, student.calls))
        del seen[CASES - 1 : -1]  # large results are not all kept
        check.run(student, **case)

    def anyway(case: Case) -> None:
        with contextlib.suppress(Wrong, Raised):
            run(case)

    try:
        _drawn(exercise, check, seed_, check.examples, smaller=told)(run)
    except Flaky:
        lines = ("expected the same answer to the same arguments",
                 "got      another one each time: is something drawn without a seed?")
        return _failed(check, lines=lines)
    except Raised as error:
        return _failed(check, case=seen[-1].case, seen=(seen[-1],), **_raised(error))
    except Wrong as wrong:
        smallest = seen[-1]
        del seen[:]
        if told:
            _drawn(exercise, check, seed_, min(CASES, check.examples))(anyway)
        return _failed(check, case=smallest.case, seen=(smallest, *seen), lines=wrong.lines)
    except Exception as error:  # a check that stumbles over a result gives no points for it
        lines = ("expected a result that the check can read",
                 f"got      one at which it stops: {type(error).__name__}")
        return _failed(check, case=seen[-1].case if seen else None, lines=lines)
    return Outcome(check.title, check.points, check.points, seen=tuple(seen))


def _drawn(
    exercise: Exercise, check: Check, seed_: int, examples: int, smaller: bool = False
) -> Callable[[Callable[[Case], None]], None]:
    """Runs a function on drawn cases, the same each time; smaller: on smaller ones if it fails."""

    def on(run: Callable[[Case], None]) -> None:
        @seed(zlib.crc32(f"{seed_} {exercise.number} {check.title}".encode()))
        @settings(
            max_examples=examples, deadline=None, derandomize=True, database=None,
            report_multiple_bugs=False, print_blob=False, suppress_health_check=[*HealthCheck],
            phases=(Phase.generate, *[Phase.shrink] * smaller),
        )
        @given(check.cases)
        def property_(case: Case) -> None:
            run(case)

        property_()

    return on


def named(exercise: Exercise, outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """The outcomes, with the known mistakes that give all that the student's code gave.

    Of the calls of the mistaken function, and of what runs beside the student, over all checks: one
    that explains a part only is none. Where one of the student's functions calls another, as the
    reference does, both are wrong: then it has to explain them all.
    """
    outcomes = tuple(outcomes)
    if all(outcome.points for outcome in outcomes):
        return outcomes
    seen = sorted(
        ((outcome, one, i == 0 and not outcome.points)
         for outcome in outcomes for i, one in enumerate(outcome.seen)),
        key=lambda found: not found[2],
    )
    unwritten = {"NotImplementedError"}  # and what calls it, says nothing about another function
    shows: dict[str, set[str]] = {}
    for function, known in exercise.wrong.items():
        for mistake, through in itertools.product(known, (False, True)[: len(exercise.functions)]):
            if mistake in shows:
                continue
            local = Local(exercise, mistaken(exercise, function, mistake, through))
            which = exercise.functions if through else (function,)
            failed = set()
            for outcome, one, smallest in seen:
                theirs = _calls(exercise, one.calls, which)
                if (not theirs and not smallest) or unwritten & {call.error for call in theirs}:
                    continue
                fails = _fails(one, local)
                ours = _calls(exercise, local.calls, which)
                if not all(map(alike, theirs, ours)):
                    break
                if smallest and fails and theirs:
                    failed.add(outcome.title)
            else:
                shows[mistake] = failed
    return tuple(
        replace(outcome, mistakes=tuple(m for m in shows if outcome.title in shows[m]))
        for outcome in outcomes
    )


def _calls(exercise: Exercise, calls: list[Called], which: Collection[str]) -> list[Called]:
    """Those that may have run one of these functions."""
    return [call for call in calls if call.name in which or call.name not in exercise.functions]


def _fails(one: Seen, student: Student) -> bool:
    student.calls = []
    try:
        one.check.run(student, **one.case)
    except (Wrong, Raised):
        return True
    return False


def alike(a: Any, b: Any) -> bool:
    """Are these the same results, but for rounding?"""
    if isinstance(a, np.ndarray | np.generic | float | int) and not isinstance(a, bool):
        if not isinstance(b, np.ndarray | np.generic | float | int) or np.shape(a) != np.shape(b):
            return False
        kinds = np.asarray(a).dtype, np.asarray(b).dtype
        plain = type(a) in (float, int) or type(b) in (float, int)  # either may be meant
        if kinds[0] != kinds[1] and not plain:
            return False
        eps = max((float(np.finfo(k).eps) for k in kinds if k.kind == "f"), default=0.0)
        top = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
        loose = min(1e4 * eps, 0.01) * top  # a half has few digits to agree in
        return bool(np.allclose(a, b, rtol=0, atol=loose, equal_nan=True))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, Called):
        return isinstance(b, Called) and all(
            alike(getattr(a, f), getattr(b, f)) for f in ("name", "value", "changed", "error")
        )
    return type(a) is type(b) and bool(a == b)


def _failed(check: Check, case: Case | None = None, **found: Any) -> Outcome:
    shown = tuple((name, held) for name, held in (case or {}).items() if not name.startswith("_"))
    return Outcome(check.title, 0, check.points, case=shown, **found)


def _none(exercise: Exercise, problem: dict[str, Any]) -> tuple[Outcome, ...]:
    return tuple(_failed(check, **problem) for check in exercise.checks)


def _raised(error: Raised, doing: str = "") -> dict[str, Any]:
    frames = tuple((int(line), str(name), str(text)) for line, name, text in error.frames)
    if error.kind == "NotImplementedError":
        where = error.frames[-1][1] if error.frames else "a function"
        return {"kind": "todo", "lines": (f"{where} is not written yet",), "frames": frames}
    lines = (f"{doing} raised {error}" if doing else f"your code raised {error}",)
    return {"kind": error.kind, "lines": lines, "frames": frames}


def _unfit(exercise: Exercise, source: str) -> dict[str, Any] | None:
    """What is wrong with the text, before any of it runs."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        why: tuple[str, ...] = (f"Python cannot read the file: {error.msg}",)
        frames = ((error.lineno or 0, "", (error.text or "").strip()),)
        return {"kind": "SyntaxError", "lines": why, "frames": frames}
    except (ValueError, RecursionError, MemoryError) as error:
        return {"kind": "SyntaxError", "lines": (f"Python cannot read the file: {error}",)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    missing = [name for name in exercise.functions if name not in defined]
    if missing:
        why = (
            f"the file has no function {missing[0]}",
            f"the stub has it: minilora ex reset {exercise.number}",
        )
        return {"kind": "missing", "lines": why}
    allowed = {"numpy", *sys.stdlib_module_names} | ({"minilora"} if exercise.engine else set())
    for line, name, text in _imports(tree, source.splitlines()):
        if name not in allowed:
            why = (f"this exercise is about NumPy alone: line {line} imports {name}",)
            return {"kind": "imports", "lines": why, "frames": ((line, "", text),)}
    return None


def _imports(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in found:
            root = name.split(".")[0] or "a module beside it"
            yield node.lineno, root, lines[node.lineno - 1].strip()
