"""Judge a student's file: run each check on drawn cases, find the smallest failing case, and name
the known mistake behind it."""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis.errors import Flaky

from ..files import cache
from .book import Exercise, with_mistake
from .kit import Case, Check, Wrong
from .remote import Remote
from .student import LIMITS, Call, Changed, Halted, Limits, Local, Raised, Student
from .worker import LIMIT

HALTS = 2  # after this many halts of a file's process, no further check is run
HOME = "__hypothesis_home_directory"  # Hypothesis writes into it: not into a student's folder
VISIBLE = 0.05  # a larger gap can be seen, as a share of the largest expected number
CASES = 20  # cases of a failed check on which a known mistake has to agree with the student


@dataclass(frozen=True)
class Trial:
    """One drawn case of a check, and the student's calls in it."""

    check: Check
    case: Case
    calls: list[Call]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check."""

    title: str
    points: int
    of: int
    lines: tuple[str, ...] = ()  # the expected and the actual result
    case: tuple[tuple[str, Any], ...] = ()  # the arguments of the smallest failing case
    kind: str = ""  # the exception's name, "todo", "halted", ...; "": a wrong result
    frames: tuple[tuple[int, str, str], ...] = ()  # (line, function, source) of the student's file
    mistakes: tuple[str, ...] = ()  # known mistakes with the same results
    trials: tuple[Trial, ...] = field(default=(), repr=False)  # the smallest failing one first


@dataclass(frozen=True)
class Verdict:
    """The verdict on a file: an outcome for each check."""

    exercise: Exercise
    outcomes: tuple[Outcome, ...]
    printed: str = ""
    of_case: bool = False  # is `printed` the output in the first failure's smallest case only?

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


def judge(
    exercise: Exercise, source: str, *, seed: int = 0, limits: Limits = LIMITS,
    explain: bool = True, opened: Callable[[Exercise, str, Limits], Student] = Remote,
) -> Verdict:
    """Judge a student's source in a process of its own. The same seed draws the same cases.

    explain: find the smallest failing cases and name the mistakes, which takes most of the time.
    opened: opens the student's functions; where there is no other process, in this one.

    Raises Fault if that process cannot begin: then no student's file is judged.
    """
    problem = _problem(exercise, source)
    if problem is not None:
        return Verdict(exercise, _none(exercise, problem))
    printed = ""
    open_: list[Student] = []
    known: set[str] = set()  # functions that change an argument: it costs one check

    def student() -> Student:
        if not open_:
            open_.append(opened(exercise, source, limits))
            open_[0].known = known
        return open_[0]

    outcomes: list[Outcome] = []
    try:
        for check in exercise.checks:
            if sum(outcome.kind == "halted" for outcome in outcomes) == HALTS:
                lines = (f"not run: the process ended or hung in {HALTS} checks before",)
                outcomes.append(_failed(check, kind="skipped", lines=lines))
                continue
            try:
                if missing := student().missing:
                    return Verdict(exercise, _none(exercise, _missing(exercise, missing[0])))
                outcomes.append(attempt(exercise, check, student(), seed, explain))
            except Raised as error:  # while the file was loaded
                problem = _raised(error, "loading the file")
                return Verdict(exercise, _none(exercise, problem), printed)
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
    named = explained(exercise, outcomes) if explain else tuple(outcomes)
    return Verdict(exercise, named, alone or printed, bool(alone))


def _printed_for(outcomes: Iterable[Outcome], student: Student | None = None) -> str:
    """Run the smallest case of the first failure again, and return its printed output."""
    first = next((one.trials[0] for one in outcomes if not one.points and one.trials), None)
    if student is None or first is None or not (before := student.printed()):
        return ""
    student.calls = []
    with contextlib.suppress(Wrong, Raised, Halted):
        first.check.run(student, **first.case)
    return student.printed()[len(before) :]


def judge_here(
    exercise: Exercise, written: Mapping[str, Any], *, seed: int = 0, explain: bool = True
) -> Verdict:
    """Judge functions of this process (references and known mistakes), without limits.

    explain: as in `judge`; without it, stop at the first failed check.
    """
    student = Local(exercise, written)
    outcomes: list[Outcome] = []
    for check in exercise.checks:
        outcomes.append(attempt(exercise, check, student, seed, explain))
        if not (explain or outcomes[-1].points):
            return Verdict(exercise, tuple(outcomes))
    return Verdict(exercise, explained(exercise, outcomes))


def attempt(
    exercise: Exercise, check: Check, student: Student, seed_: int, explain: bool = True
) -> Outcome:
    """Run one check on drawn cases. Raises Halted if the student's process ends."""
    trials: list[Trial] = []

    def run(case: Case) -> None:
        student.calls = []
        trials.append(Trial(check, case, student.calls))
        del trials[CASES - 1 : -1]  # results can be large: keep a few
        check.run(student, **case)

    def run_on(case: Case) -> None:
        with contextlib.suppress(Wrong, Raised):
            run(case)

    def run_clear(case: Case) -> None:
        with contextlib.suppress(Raised):
            try:
                run(case)
            except Wrong as wrong:
                if wrong.share >= VISIBLE:
                    raise

    try:
        _on_cases(exercise, check, seed_, check.examples, run, shrink=explain)
    except Flaky:
        lines = ("expected the same answer to the same arguments",
                 "got      another answer each time: do you draw random numbers without a seed?")
        return _failed(check, lines=lines)
    except Raised as error:
        last = trials[-1]
        return _failed(check, case=last.case, trials=(last,), **_raised(error))
    except Wrong as wrong:
        smallest = trials[-1]
        if explain and wrong.share < VISIBLE:  # -2.0001 for -2: is there a case that shows more?
            try:
                _on_cases(exercise, check, seed_, check.examples, run_clear, shrink=True)
            except Wrong as clear:
                wrong, smallest = clear, trials[-1]
            except Flaky:
                pass
        del trials[:]
        if isinstance(wrong, Changed):
            student.known.add(wrong.function)
        if explain:
            _on_cases(exercise, check, seed_, min(CASES, check.examples), run_on)
        return _failed(check, case=smallest.case, trials=(smallest, *trials), lines=wrong.lines)
    except Exception as error:  # the check itself cannot handle the result
        lines = ("expected a result that the check can read",
                 f"got      a result on which the check raised {type(error).__name__}")
        return _failed(check, case=trials[-1].case if trials else None, lines=lines)
    return Outcome(check.title, check.points, check.points, trials=tuple(trials))


def _on_cases(
    exercise: Exercise, check: Check, seed_: int, examples: int, run: Callable[[Case], None],
    shrink: bool = False,
) -> None:
    """Run a function on drawn cases, always the same ones; shrink: then on smaller failing ones."""

    @seed(zlib.crc32(f"{seed_} {exercise.number} {check.title}".encode()))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        report_multiple_bugs=False, print_blob=False, suppress_health_check=[*HealthCheck],
        phases=(Phase.generate, *[Phase.shrink] * shrink),
    )
    @given(check.cases)
    def property_(case: Case) -> None:
        run(case)

    home = vars(configuration)
    before = home.get(HOME)
    if before is None and "HYPOTHESIS_STORAGE_DIRECTORY" not in os.environ:
        configuration.set_hypothesis_home_dir(cache.folder("hypothesis"))
    try:
        property_()
    finally:
        configuration.set_hypothesis_home_dir(before)


def explained(exercise: Exercise, outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """Return the outcomes with the known mistakes that explain the failures.

    A mistake explains them if, over all checks, it gives what the student's code gave in every call
    of the mistaken function and of the drivers. If other functions of the reference call the
    mistaken one, theirs may be wrong too: then it has to explain the calls of all functions.
    """
    outcomes = tuple(outcomes)
    if all(outcome.points for outcome in outcomes):
        return outcomes
    trials = sorted(
        ((outcome, one, i == 0 and not outcome.points)
         for outcome in outcomes for i, one in enumerate(outcome.trials)),
        key=lambda entry: not entry[2],
    )
    unwritten = {"NotImplementedError"}  # it, or a call of it: says nothing about other functions
    explains: dict[str, set[str]] = {}  # mistake -> the titles of the checks that it fails
    for function, known in exercise.wrong.items():
        for mistake, through in itertools.product(known, (False, True)[: len(exercise.functions)]):
            if mistake in explains:
                continue
            local = Local(exercise, with_mistake(exercise, function, mistake, through))
            which = exercise.functions if through else (function,)
            failed = set()
            for outcome, one, smallest in trials:
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
                explains[mistake] = failed
    return tuple(
        replace(outcome, mistakes=tuple(m for m in explains if outcome.title in explains[m]))
        for outcome in outcomes
    )


def _calls(exercise: Exercise, calls: list[Call], which: Collection[str]) -> list[Call]:
    """The calls of these functions and of the drivers, which may call them."""
    return [call for call in calls if call.name in which or call.name not in exercise.functions]


def _fails(trial: Trial, student: Student) -> bool:
    student.calls = []
    try:
        trial.check.run(student, **trial.case)
    except (Wrong, Raised):
        return True
    return False


def alike(a: Any, b: Any) -> bool:
    """Are these results the same up to rounding?"""
    if isinstance(a, np.ndarray | np.generic | float | int) and not isinstance(a, bool):
        if not isinstance(b, np.ndarray | np.generic | float | int) or np.shape(a) != np.shape(b):
            return False
        kinds = np.asarray(a).dtype, np.asarray(b).dtype
        python = type(a) in (float, int) or type(b) in (float, int)  # these have no exact dtype
        if kinds[0] != kinds[1] and not python:
            return False
        eps = max((float(np.finfo(k).eps) for k in kinds if k.kind == "f"), default=0.0)
        top = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
        atol = min(1e4 * eps, 0.01) * top  # float16 has few digits
        return bool(np.allclose(a, b, rtol=0, atol=atol, equal_nan=True))
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, Call):
        return isinstance(b, Call) and all(
            alike(getattr(a, f), getattr(b, f)) for f in ("name", "value", "changed", "error")
        )
    return type(a) is type(b) and bool(a == b)


def _failed(check: Check, case: Case | None = None, **facts: Any) -> Outcome:
    public = tuple((name, value) for name, value in (case or {}).items() if name[0] != "_")
    return Outcome(check.title, 0, check.points, case=public, **facts)


def _none(exercise: Exercise, problem: dict[str, Any]) -> tuple[Outcome, ...]:
    return tuple(_failed(check, **problem) for check in exercise.checks)


def _raised(error: Raised, doing: str = "") -> dict[str, Any]:
    frames = tuple((int(line), str(name), str(text)) for line, name, text in error.frames)
    if error.kind == "NotImplementedError":
        where = error.frames[-1][1] if error.frames else "a function"
        return {"kind": "todo", "lines": (f"{where} is not written yet",), "frames": frames}
    if error.kind == LIMIT:
        return {"kind": LIMIT, "lines": (error.message,), "frames": frames}
    lines = (f"{doing} raised {error}" if doing else f"your code raised {error}",)
    return {"kind": error.kind, "lines": lines, "frames": frames}


def _missing(exercise: Exercise, name: str) -> dict[str, Any]:
    """What is wrong with a file that was run and then has no such function, however bound."""
    reset = f"to write the stub again, which has it: minilora ex reset {exercise.number}"
    return {"kind": "missing", "lines": (f"the file has no function {name}", reset)}


def _problem(exercise: Exercise, source: str) -> dict[str, Any] | None:
    """What is wrong with the text of a file before it is run, as fields of an Outcome."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        why: tuple[str, ...] = (f"Python cannot read the file: {error.msg}",)
        frames = ((error.lineno or 0, "", (error.text or "").strip()),)
        return {"kind": "SyntaxError", "lines": why, "frames": frames}
    except (ValueError, RecursionError, MemoryError) as error:
        return {"kind": "SyntaxError", "lines": (f"Python cannot read the file: {error}",)}
    allowed = {"numpy", *sys.stdlib_module_names} | ({"minilora"} if exercise.engine else set())
    for line, name, text in _imports(tree, source.split("\n")):
        if name not in allowed:
            use = "NumPy, minilora" if exercise.engine else "NumPy"
            why = (f"line {line} imports {name}: use only {use} and Python's standard library",)
            return {"kind": "imports", "lines": why, "frames": ((line, "", text),)}
    return None


def _imports(tree: ast.Module, lines: list[str]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, module, source line) of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = ["." * node.level + (node.module or "")]
        else:
            continue
        for name in modules:
            root = name.split(".")[0] or "a neighbouring module"
            yield node.lineno, root, lines[node.lineno - 1].strip()
