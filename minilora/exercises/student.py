"""A student's functions, as the checks call them: in their own process, or in this one."""

from __future__ import annotations

import copy
import importlib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .book import Exercise, beside
from .kit import Wrong, described, shown
from .worker import error_data


@dataclass(frozen=True)
class Limits:
    """The limits of one process.

    `seconds` and `cpu` count the time of the processor: a busy machine takes no points. `wait` and
    `total` go by the clock: they only end what sleeps, and are much longer.
    """

    seconds: float = 5.0  # of the processor, one call
    cpu: int = 30  # seconds of the processor, all calls
    wait: float = 60.0  # seconds by the clock, one call
    total: float = 600.0  # seconds by the clock, all calls
    memory: int = 2 << 30  # bytes
    output: int = 1 << 20  # bytes of a written file


LIMITS = Limits()


class Changed(Wrong):
    """A function changed an argument that it must not change."""

    def __init__(self, function: str, *lines: str) -> None:
        super().__init__(*lines)
        self.function = function


class Raised(Exception):
    """The student's code raised an exception. frames: (line, function, source) of its file."""

    def __init__(self, kind: str, message: str, frames: list[list[Any]]) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message, self.frames = kind, message, frames


class Halted(BaseException):
    """The student's process ended, or was ended: no more answers come.

    It is no Exception, so that it also ends Hypothesis's search for a smaller case.
    """


@dataclass(frozen=True)
class Call:
    """One call of a function: its result and changed arguments, or its error."""

    name: str
    value: Any = None
    changed: tuple[tuple[int, Any], ...] = ()
    error: str = ""


class Student:
    """`student.f(x, y)` calls the student's f with copies of the arguments, and records the call.

    Raises Changed if f changes an argument that it must not change, unless f is in `known`.
    `missing` are the functions that the student's file does not have.
    """

    missing: Sequence[str] = ()

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.calls: list[Call] = []
        self.known: set[str] = set()

    def printed(self) -> str:
        """Return what the student's code has printed so far."""
        return ""

    def close(self) -> None:
        """End what was begun for it."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args: self._checked(name, args)

    def _call(self, name: str, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        """Return the result, and the arguments after the call. Raises Raised or Halted."""
        given = copy.deepcopy([*args])
        if name not in self.exercise.drivers:
            return self._result(name, given)
        try:
            return self.exercise.drivers[name](self._file(), *given), given
        except (Raised, Wrong):
            raise
        except Exception as error:  # a driver cannot go on with what it got
            data = error_data(error, "")
            raise Raised(data["error"], data["message"], []) from error

    def _result(self, name: str, given: list[Any]) -> tuple[Any, list[Any]]:
        """Call the student's function; return as `_call` does."""
        raise NotImplementedError

    def _file(self) -> Any:
        """Return what a driver sees of the student's file: its functions and classes.

        Their errors are Raised. `imported(name)` is a module, as the student's code has it;
        `each(objects, name)` are the attributes of this name of its objects.
        """
        raise NotImplementedError

    def _checked(self, name: str, args: tuple[Any, ...]) -> Any:
        try:
            value, after = self._call(name, args)
        except Raised as error:
            self.calls.append(Call(name, error=error.kind))
            raise
        changed = tuple((i, b) for i, (a, b) in enumerate(zip(args, after)) if not same(a, b))
        self.calls.append(Call(name, value, changed))
        for i, now in changed:
            argument = self.exercise.argument(name, i)
            if argument not in self.exercise.in_place.get(name, ()):
                if name in self.known:
                    continue
                raise Changed(
                    name, f"expected {name} not to change its arguments",
                    f"got      {argument} changed in place: {shown(args[i])} is now {shown(now)}",
                )
            _put(args[i], now)
        return value


def same(a: Any, b: Any) -> bool:
    """Are these values equal bit by bit?"""
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and [*a] == [*b] and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.random.Generator):
        return True  # drawing from it is allowed
    return type(a) is type(b) and bool(a == b or a != a)


def _put(old: Any, new: Any) -> None:
    """Write the changed values into the judge's own arguments."""
    if isinstance(old, np.ndarray):
        wanted = f"expected an array that keeps its shape {old.shape} and {old.dtype}"
        if not isinstance(new, np.ndarray):
            raise Wrong(wanted, f"got      {described(new) if new is not None else 'none'}")
        if old.shape != new.shape or old.dtype != new.dtype:
            raise Wrong(wanted, f"got      {new.shape} and {new.dtype}")
        old[...] = new
    elif isinstance(old, dict):
        for key in old:
            _put(old[key], new.get(key))
    else:
        for a, b in zip(old, new):
            _put(a, b)


class Local(Student):
    """Functions of this process: a reference, or a known mistake. path: the file that has them."""

    def __init__(
        self, exercise: Exercise, functions: Mapping[str, Callable[..., Any]], path: str = ""
    ) -> None:
        super().__init__(exercise)
        self._functions, self._path = functions, path

    def _result(self, name: str, given: list[Any]) -> tuple[Any, list[Any]]:
        return _raising(self._functions[name], self._path)(*given), given

    def _file(self) -> Any:
        names = beside(self.exercise, self._functions)
        ours = {name: one if isinstance(one, type) else _raising(one, self._path)
                for name, one in names.items()}
        return types.SimpleNamespace(imported=importlib.import_module, each=each, **ours)


def each(objects: Sequence[Any], name: str) -> list[Any]:
    """Return the attribute of this name of each object."""
    return [getattr(one, name) for one in objects]


def _raising(function: Callable[..., Any], path: str) -> Callable[..., Any]:
    """Return the function with its errors as Raised, with their frames in the file `path`."""

    def call(*args: Any, **named: Any) -> Any:
        with np.errstate(all="ignore"):
            try:
                return function(*args, **named)
            except Raised:
                raise
            except (Exception, SystemExit) as error:
                data = error_data(error, path)
                raise Raised(data["error"], data["message"], data["frames"]) from error

    return call
