"""A student's functions, as the checks call them: in their own process, or in this one."""

from __future__ import annotations

import copy
import importlib
import json
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import child, wire
from .book import Exercise, beside
from .child import BEGIN, Fault
from .kit import Wrong, described, shown
from .worker import error_data

NO_ANSWER = "its process sent something that is no answer"


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
    """

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.calls: list[Call] = []
        self.known: set[str] = set()

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
    """Functions of this process: a reference, or a known mistake."""

    def __init__(self, exercise: Exercise, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(exercise)
        self._functions = functions

    def _result(self, name: str, given: list[Any]) -> tuple[Any, list[Any]]:
        return _raising(self._functions[name])(*given), given

    def _file(self) -> Any:
        names = beside(self.exercise, self._functions)
        ours = {name: one if isinstance(one, type) else _raising(one)
                for name, one in names.items()}
        return types.SimpleNamespace(imported=importlib.import_module, each=each, **ours)


def each(objects: Sequence[Any], name: str) -> list[Any]:
    """Return the attribute of this name of each object."""
    return [getattr(one, name) for one in objects]


def _raising(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with its errors as Raised."""

    def call(*args: Any, **named: Any) -> Any:
        with np.errstate(all="ignore"):
            try:
                return function(*args, **named)
            except Raised:
                raise
            except Exception as error:
                data = error_data(error, "")
                raise Raised(data["error"], data["message"], []) from error

    return call


class Remote(Student):
    """Functions of a student's file, in a process with limits and a temporary folder.

    Raises Fault if the process cannot begin, Raised if the file cannot be loaded, Halted if the
    process ends or does not answer. `missing` are the functions that the file does not have.
    """

    def __init__(self, exercise: Exercise, source: str, limits: Limits = LIMITS) -> None:
        super().__init__(exercise)
        self._limits, self._last, self._printed = limits, 0, ""
        self._began, self._left, self._budget = False, BEGIN, BEGIN
        self._of_driver = False
        try:
            self._folder = Path(tempfile.mkdtemp(prefix="minilora-"))
            path = self._folder / exercise.name
            path.write_text(source, "utf-8")
        except OSError as error:
            raise child.fault(f"a temporary file cannot be written: {error}") from error
        try:
            self._process, self._words = child.start(
                "worker", "main", cwd=self._folder, env=child.environment(self._folder),
                start_new_session=True,
            )
        except Fault:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._both = wire.Both(self._stand_in, tells=False)
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._talk_ = threading.Thread(target=self._talk, daemon=True)
        self._talk_.start()
        try:
            setup = {
                "path": str(path), "engine": exercise.engine,
                "functions": [*exercise.functions],
                "seconds": limits.seconds, "cpu": limits.cpu, "memory": limits.memory,
                "output": limits.output,
            }
            in_force = self._answer(json.dumps(setup).encode(), BEGIN)["limits"]
            self._limits = replace(limits, cpu=in_force["cpu"], memory=in_force["memory"])
            self._began, self._last, self._left = True, 1, limits.total
            loaded = self._answer(None, limits.wait)
            if "error" in loaded:
                raise Raised(*_error(loaded))
            written = loaded.get("written")
            written = written if isinstance(written, list) else []
            self.missing = [name for name in exercise.functions if name not in written]
        except BaseException:
            self.close()
            raise

    def _talk(self) -> None:
        """Send each request and read one answer to it; never read ahead."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        began = False
        while (request := self._asked.get()) is not self:
            try:
                if request is not None:
                    wire.send(stdin, request)
                if not began:
                    wire.wait(stdout)
                    began = True
                self._answers.put(wire.receive(stdout))
            except Exception as error:  # end of the stream, or no valid message
                self._answers.put(error)
                return

    def _answer(self, data: bytes | None, seconds: float) -> dict[str, Any]:
        """Send a message, and return the next one. Without a valid one in time, end the process.

        Raises Halted; before the student's code has begun, Fault.
        """
        began = time.monotonic()
        self._asked.put(data)
        try:
            got = self._answers.get(timeout=max(0.0, min(seconds, self._left)))
        except queue.Empty:
            short = self._left < seconds
            self._stop_if_not_begun(f"its process did not begin within {BEGIN:g} seconds")
            self.close()
            raise Halted(
                f"its calls took more than {self._limits.total:g} seconds in total, the limit"
                if short else
                f"it did not end within {self._limits.wait:g} seconds, the limit: does it sleep, "
                "or wait for something?"
            ) from None
        self._left -= time.monotonic() - began
        ended = NO_ANSWER
        if isinstance(got, EOFError | OSError):
            ended = self._ended()
        elif isinstance(got, bytes):
            with suppress(Exception):  # what a student's process sends may be anything
                answer = self._both.unpack(got)
                if answer["id"] == self._last:
                    return answer
        self._stop_if_not_begun(ended)
        self.close()
        raise Halted(ended)

    def _stop_if_not_begun(self, why: str) -> None:
        if not self._began:
            error = child.fault(why, self._words)
            self.close()
            raise error

    def _ended(self) -> str:
        """Return a message that says how the process ended."""
        try:
            code = self._process.wait(2)
        except subprocess.TimeoutExpired:
            return NO_ANSWER
        if self._began and code < 0 and -code == getattr(signal, "SIGPROF", 0):
            return (
                f"it did not end within {self._limits.seconds:g} seconds of processor time, the "
                "limit of one call: is there a loop that never stops?"
            )
        most = (
            f"it used more than {self._limits.cpu} seconds of processor time, the limit of all "
            "calls"
        )
        if self._began and code < 0 and -code == getattr(signal, "SIGXCPU", 0):
            return most
        if self._began and code < 0 and -code == getattr(signal, "SIGKILL", 0):
            return f"its process was killed: {most}, or the machine had no memory left"
        if code < 0:
            return f"its process was ended by signal {-code}"
        return f"its process ended with exit code {code}" + ": does it call os._exit?" * self._began

    def _result(self, name: str, given: list[Any]) -> tuple[Any, list[Any]]:
        self._begin(False)
        answer = self._asks("call", name, given, after=True)
        after = answer.get("args")
        if not isinstance(after, list) or len(after) != len(given):
            self.close()
            raise Halted(NO_ANSWER)
        return answer.get("value"), after

    def _file(self) -> Any:
        self._begin(True)
        return _File(self)

    def _begin(self, of_driver: bool) -> None:
        """Begin a call of a check: the student's process forgets the calls before."""
        self._of_driver = of_driver
        self._make: list[wire.New] = []  # objects that the next request makes first
        self._first: dict[str, Any] = {"fresh": True}

    def _asks(self, do: str, on: Any, args: Sequence[Any], after: bool = False,
              **named: Any) -> dict[str, Any]:
        """Let the student's process do something; do what its code calls here meanwhile."""
        if self._first:
            self._budget = self._limits.wait
        make, self._make = self._make, []
        message = {**self._first, "make": make, "do": do, "on": on, "args": [*args],
                   "named": named, "after": after}
        self._first = {}
        answer = self._says(message)
        while "call" in answer:
            try:
                value = answer["call"](*answer.get("args", ()), **answer.get("named", {}))
                returned = {"return": value}
            except Exception as error:
                kind = error.kind if isinstance(error, Raised) else type(error).__name__
                returned = {"raise": [kind, str(error)[:400]]}
            answer = self._says(returned)
        if "error" in answer:
            raise Raised(*_error(answer))
        return answer

    def _says(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message, and return the next one."""
        began = time.monotonic()
        self._last += 1
        try:
            return self._answer(self._both.pack({"id": self._last, **message}), self._budget)
        finally:
            self._budget -= time.monotonic() - began

    def _stand_in(self, kind: str, text: str, calls: bool) -> Any:
        """What stands here for an object of the student's process. A driver can use it."""
        if not self._of_driver:
            return wire.Opaque(kind, text)
        return (Function if calls else Thing)(self, kind, text)

    def printed(self) -> str:
        """Return what the student's code has printed so far."""
        with suppress(OSError):
            data = (self._folder / "printed.txt").read_bytes()
            self._printed = data.decode("utf-8", "replace")
        return self._printed

    def close(self) -> None:
        """End the process and its children, and remove its folder."""
        self.printed()
        if hasattr(os, "killpg"):
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._asked.put(self)
        self._talk_.join(2.0)
        self._words.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not self._talk_.is_alive():  # else a child holds the pipe
                with suppress(OSError):
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class Thing(wire.Opaque):
    """Stands for an object of the student's process, as a driver uses it."""

    def __init__(self, remote: Remote, kind: str, text: str) -> None:
        vars(self).update(_remote=remote, kind=kind, text=text)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._remote._asks("get", self, [name]).get("value")

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote._asks("set", self, [name, value])

    def __getitem__(self, index: Any) -> Any:
        return self._remote._asks("item", self, [index]).get("value")


class Function(Thing):
    """Stands for a function or a class of the student's process."""

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._remote._asks("call", self, args, **named).get("value")


class _File:
    """The student's file, as a driver uses it. An object of a class is made with the next call."""

    def __init__(self, remote: Remote) -> None:
        self._remote, self._classes = remote, remote.exercise.classes

    def imported(self, name: str) -> Any:
        """Return a module of the student's process."""
        return self._remote._asks("import", name, []).get("value")

    def each(self, objects: Sequence[Any], name: str) -> list[Any]:
        """Return the attribute of this name of each object."""
        values = self._remote._asks("each", [*objects], [name]).get("value")
        if not isinstance(values, list) or len(values) != len(objects):
            raise Raised("ValueError", NO_ANSWER, [])
        return values

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            return self._remote._asks("call", name, args, **named).get("value")

        def make(*args: Any) -> Thing:
            made = Thing(self._remote, name, name)
            self._remote._make.append(wire.New(made, name, args))
            return made

        return make if name in self._classes else call


def _error(answer: dict[str, Any]) -> tuple[str, str, list[list[Any]]]:
    """Return kind, message and frames of an answer. A student's process may have forged them."""
    frames = answer.get("frames")
    valid = [
        [one[0], str(one[1])[:200], str(one[2])[:200]]
        for one in (frames if isinstance(frames, list) else [])
        if isinstance(one, list) and len(one) == 3 and type(one[0]) is int
    ]
    return str(answer["error"])[:80], str(answer.get("message", ""))[:400], valid[-5:]
