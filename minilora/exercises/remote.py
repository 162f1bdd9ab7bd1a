"""A student's functions in a process of their own, and what a driver uses of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import child, wire
from .book import Exercise
from .child import BEGIN
from .student import LIMITS, Halted, Limits, Raised, Student

NO_ANSWER = "its process sent something that is no answer"


class Remote(Student):
    """Functions of a student's file, in a process with limits and a temporary folder.

    Raises Fault if the process cannot begin, Raised if the file cannot be loaded, Halted if the
    process ends or does not answer.
    """

    def __init__(self, exercise: Exercise, source: str, limits: Limits = LIMITS) -> None:
        super().__init__(exercise)
        self._limits, self._last, self._printed = limits, 0, ""
        self._began, self._left, self._budget = False, BEGIN, BEGIN
        self._of_driver = False
        try:
            place = tempfile.TemporaryDirectory(prefix="minilora-", ignore_cleanup_errors=True)
        except OSError as error:
            raise child.fault(f"a temporary folder cannot be made: {error}") from error
        self._place, self._folder = place, Path(place.name)
        path = self._folder / exercise.name
        try:
            path.write_text(source, "utf-8")
            self._process, self._words = child.start(
                "worker", "main", cwd=self._folder, env=child.environment(self._folder),
                start_new_session=True,
            )
        except BaseException as error:
            place.cleanup()
            if isinstance(error, OSError):
                raise child.fault(f"a temporary file cannot be written: {error}") from error
            raise
        self._both = wire.Both(self._stand_in, tells=False)
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._talk_ = threading.Thread(target=self._talk, daemon=True)
        self._talk_.start()
        try:
            setup = {
                "path": str(path), "engine": exercise.engine,
                "functions": [*exercise.functions], "hidden": [str(exercise.path.parent)],
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
        self._place.cleanup()


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
