"""Judge a student's file: run each check on drawn cases, find the smallest failing case, and name
the known mistake behind it."""

from __future__ import annotations

import ast
import contextlib
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, Phase, configuration, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from ..files import cache
from . import naming
from .book import Exercise
from .kit import Case, Check, Wrong
from .naming import Trial
from .remote import Remote
from .student import LIMITS, Changed, Halted, Limits, Local, Raised, Student
from .worker import LIMIT

HALTS = 2  # after this many halts of a file's process, no further check is run
HOME = "__hypothesis_home_directory"  # Hypothesis writes into it: not into a student's folder
VISIBLE = 0.05  # a larger gap can be seen, as a share of the largest expected number
CASES = 20  # cases of a failed check on which a known mistake has to agree with the student


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
        if explain:
            with contextlib.suppress(Halted):
                outcomes = [*explained(exercise, outcomes, open_[0] if open_ else None)]
    finally:
        for last in open_:
            last.close()
            printed = last.printed() or printed
    return Verdict(exercise, tuple(outcomes), alone or printed, bool(alone))


def _printed_for(outcomes: Iterable[Outcome], student: Student | None = None) -> str:
    """Run the smallest case of the first failure again, and return its printed output."""
    first = next((one.trials[0] for one in outcomes if not one.points and one.trials), None)
    if student is None or first is None or not (before := student.printed()):
        return ""
    student.calls = []
    with contextlib.suppress(Exception, Halted):
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
    return Verdict(exercise, explained(exercise, outcomes, student))


def attempt(
    exercise: Exercise, check: Check, student: Student, seed_: int, explain: bool = True
) -> Outcome:
    """Run one check on drawn cases. Raises Halted if the student's process ends."""
    trials: list[Trial] = []

    def run(case: Case) -> None:
        student.calls = []
        trials.append(Trial(check, case, student.calls, failed := []))
        del trials[CASES - 1 : -1]  # results can be large: keep a few
        try:
            check.run(student, **case)
        except Exception:
            failed.append(True)
            raise
        failed.append(False)

    def run_on(case: Case) -> None:
        with contextlib.suppress(Exception):
            run(case)

    def run_clear(case: Case) -> None:
        try:
            run(case)
        except Wrong as wrong:
            if wrong.share >= VISIBLE:
                raise
        except Exception:
            pass

    try:
        on_cases(exercise, check, seed_, check.examples, run, shrink=explain)
    except Flaky:
        lines = ("expected the same answer to the same arguments",
                 "got      another answer each time: do you draw random numbers without a seed?")
        return _failed(check, lines=lines)
    except Raised as error:
        raised, smallest = _raised(error), trials[-1]
        del trials[:]
        if explain and raised["kind"] not in ("todo", LIMIT):
            on_cases(exercise, check, seed_, min(CASES, check.examples), run_on)
        return _failed(check, case=smallest.case, trials=(smallest, *trials), **raised)
    except Wrong as wrong:
        smallest = trials[-1]
        if explain and wrong.share < VISIBLE:  # -2.0001 for -2: is there a case that shows more?
            try:
                on_cases(exercise, check, seed_, check.examples, run_clear, shrink=True)
            except Wrong as clear:
                wrong, smallest = clear, trials[-1]
            except Flaky:
                pass
        del trials[:]
        if isinstance(wrong, Changed):
            student.known.add(wrong.function)
        if explain:
            on_cases(exercise, check, seed_, min(CASES, check.examples), run_on)
        return _failed(check, case=smallest.case, trials=(smallest, *trials), lines=wrong.lines)
    except Exception as error:  # the check itself cannot handle the result
        lines = ("expected a result that the check can read",
                 f"got      a result on which the check raised {type(error).__name__}")
        return _failed(check, case=trials[-1].case if trials else None, lines=lines)
    return Outcome(check.title, check.points, check.points, trials=tuple(trials))


def on_cases(
    exercise: Exercise, check: Check, seed_: int, examples: int, run: Callable[[Case], None],
    shrink: bool = False,
) -> None:
    """Run a function on drawn cases, always the same ones; shrink: then on smaller failing ones."""
    for kind in check.cases:
        _on_kind(exercise, check, kind, seed_, -(-examples // len(check.cases)), run, shrink)


def _on_kind(
    exercise: Exercise, check: Check, kind: SearchStrategy[Case], seed_: int, examples: int,
    run: Callable[[Case], None], shrink: bool,
) -> None:
    @seed(zlib.crc32(f"{seed_} {exercise.number} {check.title}".encode()))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        report_multiple_bugs=False, print_blob=False, suppress_health_check=[*HealthCheck],
        phases=(Phase.generate, *[Phase.shrink] * shrink),
    )
    @given(kind)
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


def explained(
    exercise: Exercise, outcomes: Iterable[Outcome], student: Student | None
) -> tuple[Outcome, ...]:
    """Return the outcomes with the known mistakes that explain the failures."""
    outcomes = tuple(outcomes)
    if all(outcome.points for outcome in outcomes):
        return outcomes
    explains = naming.named(exercise, student, (
        (one, i == 0 and not outcome.points)
        for outcome in outcomes for i, one in enumerate(outcome.trials)
    ))
    return tuple(
        replace(outcome, mistakes=tuple(m for m in explains if outcome.title in explains[m]))
        for outcome in outcomes
    )


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
