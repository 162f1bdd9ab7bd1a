"""A student's functions, as the checks call them: in their own process, or in this one."""

from __future__ import annotations

import copy
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import child, wire
from .book import Exercise
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

    def _call(self, name: str, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        given = copy.deepcopy([*args])
        with np.errstate(all="ignore"):
            try:
                return self._functions[name](*given), given
            except Exception as error:
                data = error_data(error, "")
                raise Raised(data["error"], data["message"], []) from error


class Remote(Student):
    """Functions of a student's file, in a process with limits and a temporary folder.

    Raises Fault if the process cannot begin, Raised if the file cannot be loaded, Halted if the
    process ends or does not answer. `missing` are the functions that the file does not have.
    """

    def __init__(self, exercise: Exercise, source: str, limits: Limits = LIMITS) -> None:
        super().__init__(exercise)
        self._limits, self._last, self._printed = limits, 0, ""
        self._began, self._left = False, BEGIN
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
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._talk_ = threading.Thread(target=self._talk, daemon=True)
        self._talk_.start()
        try:
            setup = {
                "exercise": str(exercise.path), "path": str(path), "engine": exercise.engine,
                "functions": [*exercise.functions],
                "seconds": limits.seconds, "cpu": limits.cpu, "memory": limits.memory,
                "output": limits.output,
            }
            in_force = self._answer(setup, BEGIN)["limits"]
            self._limits = replace(limits, cpu=in_force["cpu"], memory=in_force["memory"])
            self._began, self._last, self._left = True, 1, limits.total
            written = self._answer(None, limits.wait).get("written")  # loading the file
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

    def _answer(self, request: Any, seconds: float) -> dict[str, Any]:
        """Return the answer to a request. Without a valid one in time, end the process.

        Raises Halted; before the student's code has begun, Fault.
        """
        began = time.monotonic()
        self._asked.put(request)
        try:
            answer = self._answers.get(timeout=max(0.0, min(seconds, self._left)))
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
        if not isinstance(answer, dict) or answer.get("id") != self._last:
            ended = self._ended() if isinstance(answer, EOFError | OSError) else NO_ANSWER
            self._stop_if_not_begun(ended)
            self.close()
            raise Halted(ended)
        if "error" in answer:
            raise Raised(*_error(answer))
        return answer

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

    def _call(self, name: str, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        self._last += 1
        request = {"id": self._last, "name": name, "args": [*args]}
        answer = self._answer(request, self._limits.wait)
        after = answer.get("args")
        if not isinstance(after, list) or len(after) != len(args):
            self.close()
            raise Halted(NO_ANSWER)
        return answer.get("value"), after

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


def _error(answer: dict[str, Any]) -> tuple[str, str, list[list[Any]]]:
    """Return kind, message and frames of an answer. A student's process may have forged them."""
    frames = answer.get("frames")
    valid = [
        [one[0], str(one[1])[:200], str(one[2])[:200]]
        for one in (frames if isinstance(frames, list) else [])
        if isinstance(one, list) and len(one) == 3 and type(one[0]) is int
    ]
    return str(answer["error"])[:80], str(answer.get("message", ""))[:400], valid[-5:]
