"""Name the known mistakes that behave as a student's answer does.

A mistake is named if it fails the cases that the answer fails, in the same way, and no other ones.
How right results are computed, and how they are rounded, makes no difference.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .book import Exercise, with_mistake
from .kit import Case, Check
from .student import Call, Halted, Local, Student

UNWRITTEN = "NotImplementedError"  # it, or a call of it: says nothing about other functions
_DOES: dict[tuple[Any, ...], Mapping[str, Any]] = {}  # what known mistakes do; it never changes
NUMBERS = np.ndarray | np.generic | float | int


@dataclass(frozen=True)
class Trial:
    """One drawn case of a check, the student's calls in it, and whether it failed."""

    check: Check
    case: Case
    calls: list[Call]
    failed: list[bool]  # [] until the case has ended


def named(
    exercise: Exercise, student: Student | None, trials: Iterable[tuple[Trial, bool]]
) -> dict[str, set[str]]:
    """Return the mistakes that explain the failures: mistake -> the titles of checks it fails.

    trials: cases of all checks; True marks the smallest case of a failed check.

    A mistake explains them if in each case both answers pass, or the calls of the mistaken function
    and of the drivers give the same. If other functions of the reference call the mistaken one,
    theirs may be wrong too: then it has to explain the calls of all functions. An exercise with
    `behaviour` says itself what an answer does: then that has to be the same.
    """
    trials = sorted(trials, key=lambda entry: not entry[1])
    seen: Mapping[str, Any] | None = None
    if exercise.behaviour is not None:
        with contextlib.suppress(Exception):
            seen = None if student is None else exercise.behaviour(student)
        if seen is None:
            return {}
    explains: dict[str, set[str]] = {}
    for function, known in exercise.wrong.items():
        for mistake, through in itertools.product(known, (False, True)[: len(exercise.functions)]):
            if mistake in explains:
                continue
            local = Local(exercise, with_mistake(exercise, function, mistake, through))
            if seen is not None and exercise.behaviour is not None:
                key = exercise.behaviour, known[mistake], through
                if key not in _DOES:
                    _DOES[key] = exercise.behaviour(local)
                if _DOES[key] == seen:
                    explains[mistake] = {one.check.title for one, first in trials if first}
                continue
            which = exercise.functions if through else (function,)
            failed = _explained(local, trials, which)
            if failed:
                explains[mistake] = failed
    return explains


def _explained(
    local: Local, trials: list[tuple[Trial, bool]], which: Collection[str]
) -> set[str] | None:
    """The titles of the failed checks that this answer fails too; None if it behaves otherwise."""
    failed = set()
    for one, smallest in trials:
        theirs = _calls(local.exercise, one.calls, which)
        if (not theirs and not smallest) or UNWRITTEN in {call.error for call in theirs}:
            continue
        fails = _fails(one, local)
        passed = not fails and one.failed == [False]
        ours = _calls(local.exercise, local.calls, which)
        eps = _grain(dict(one.case))
        if not passed and not all(alike(call, own, eps) for call, own in zip(theirs, ours)):
            return None
        if smallest and fails and theirs:
            failed.add(one.check.title)
    return failed


def _calls(exercise: Exercise, calls: list[Call], which: Collection[str]) -> list[Call]:
    """The calls of these functions and of the drivers, which may call them."""
    return [call for call in calls if call.name in which or call.name not in exercise.functions]


def _fails(trial: Trial, student: Student) -> bool:
    student.calls = []
    try:
        trial.check.run(student, **trial.case)
    except (Exception, Halted):
        return True
    return False


def alike(a: Any, b: Any, eps: float = 0.0) -> bool:
    """Are these results, or calls, the same up to rounding? eps: of the arguments' dtype."""
    if isinstance(a, NUMBERS) and not isinstance(a, bool):
        return isinstance(b, NUMBERS) and _close(np.asarray(a), np.asarray(b), eps)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(
            alike(one, other, eps) for one, other in zip(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and {*a} == {*b} and all(alike(a[k], b[k], eps) for k in a)
    if isinstance(a, Call):
        return isinstance(b, Call) and a.name == b.name and bool(a.error) == bool(b.error) and (
            alike(a.value, b.value, eps) and [i for i, _ in a.changed] == [i for i, _ in b.changed])
    return type(a) is type(b) and bool(a == b)


def _close(a: np.ndarray, b: np.ndarray, eps: float) -> bool:
    """Equal up to rounding in the least precise dtype; what is not finite, in the same places."""
    if a.shape != b.shape:
        return False
    if object in (a.dtype, b.dtype):  # integers of more than 64 bits
        return bool(np.all(a == b))
    eps = max(eps, _grain(a), _grain(b))
    finite = np.isfinite(a) & np.isfinite(b)
    top = max(np.max(np.abs(one), initial=0.0, where=finite) for one in (a, b))
    same = np.isfinite(a) == np.isfinite(b)
    atol = min(1e4 * eps, 0.01) * float(top)  # float16 has few digits
    return bool(np.all(same & np.isclose(np.where(finite, a, 0), np.where(finite, b, 0), 0, atol)))


def _grain(value: Any) -> float:
    """The largest eps of the arrays in a value; 0.0 without an array of floats."""
    if isinstance(value, np.ndarray | np.generic):
        return float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
    members = value.values() if isinstance(value, Mapping) else value
    return max(map(_grain, members), default=0.0) if isinstance(value, dict | list | tuple) else 0.0
