"""The results of a class: of each student, each exercise, each check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .book import Exercise
from .judge import Verdict
from .submissions import plain
from .worker import LIMIT

UNJUDGED = "unjudged"  # the judge ended or hung, twice: no fault of the student is known
STATES = {  # kinds of failures that every check has -> state
    "absent": "absent", "unreadable": "unreadable", "todo": "not begun", "missing": "no function",
    "imports": "forbidden import", "SyntaxError": "syntax error", "halted": "halted",
    LIMIT: "over a limit", UNJUDGED: "not judged",
}


@dataclass(frozen=True)
class Part:
    """The outcome of one check."""

    title: str
    points: int
    of: int
    kind: str = ""  # "todo", "halted", "missing", ...; "": a result, right or wrong
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """The outcome of one student's file for one exercise."""

    number: str
    points: int
    of: int
    parts: tuple[Part, ...]
    mistakes: tuple[str, ...] = ()  # known mistakes that explain the failures

    @property
    def passed(self) -> bool:
        return self.points == self.of

    @property
    def state(self) -> str:
        """One of passed, partly, wrong, raised, and the values of STATES."""
        if self.passed:
            return "passed"
        kinds = {part.kind for part in self.parts if part.points < part.of} - {"skipped"}
        kind = kinds.pop() if len(kinds) == 1 and not self.points else ""
        if not kind or kind == "Result":
            return "partly" if self.points else "wrong"
        return STATES.get(kind, "raised")


@dataclass(frozen=True)
class Pupil:
    """A student: the name of the folder or file, and a result for each exercise."""

    name: str
    results: tuple[Result, ...]

    @property
    def points(self) -> int:
        return sum(result.points for result in self.results)


@dataclass(frozen=True)
class Task:
    """The facts about an exercise that a table shows."""

    number: str
    title: str
    points: int


@dataclass(frozen=True)
class Class:
    """The results of a class. left_out: names in the folder that are no submissions."""

    seed: int
    tasks: tuple[Task, ...]
    pupils: tuple[Pupil, ...]
    left_out: tuple[str, ...] = ()

    @property
    def of(self) -> int:
        return sum(task.points for task in self.tasks)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The students of whom a file could not be judged: its 0 points mean nothing."""
        return tuple(
            pupil.name for pupil in self.pupils
            if any(result.state == STATES[UNJUDGED] for result in pupil.results)
        )


def nothing(of: Exercise, kind: str, line: str) -> Result:
    """A result without points: the same problem in every check."""
    parts = tuple(Part(check.title, 0, check.points, kind, (line,)) for check in of.checks)
    return Result(of.number, 0, of.points, parts)


def result_from(verdict: Verdict) -> Result:
    parts = tuple(
        Part(one.title, one.points, one.of, one.kind, tuple(map(plain, one.lines)))
        for one in verdict.outcomes
    )
    of = verdict.exercise
    return Result(of.number, verdict.points, of.points, parts, verdict.mistakes)


def result_of(data: Mapping[str, Any]) -> Result:
    """The inverse of asdict."""
    parts = tuple(Part(**{**part, "lines": tuple(part["lines"])}) for part in data["parts"])
    return Result(**{**data, "parts": parts, "mistakes": tuple(data["mistakes"])})
