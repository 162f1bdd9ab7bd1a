"""The process that runs a student's code. The checks run elsewhere.

It has limits of time, memory, output and files. It may not start a process, remove a file or open a
connection. That stops accidents and pranks; it is no security sandbox.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import errno
import importlib.util
import json
import operator
import os
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from . import guard, wire

VERBS: dict[str, Callable[..., Any]] = {
    "get": getattr, "set": setattr, "item": operator.getitem, "import": importlib.import_module,
    "each": lambda objects, name: [getattr(one, name) for one in objects],
}
LIMIT = "limit"  # the kind of an exception that a limit causes


def main() -> None:
    """Answer requests until the end of the input.

    What fails before the student's code begins is the judge's fault: this process ends, and the
    judge reads why from its stderr.
    """
    asked, answer = wire.streams()
    with asked, answer:
        me = os.getpid()
        if sys.platform == "linux":  # if the judge is killed, so is this process
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        setup = json.loads(wire.receive(asked))
        with contextlib.suppress(EOFError):
            _Line(asked, answer, setup, me).run()


class _Line:
    """The student's side of the line: it loads the file, and does what the judge requests.

    Nothing of an exercise is in this process but the student's own file.
    """

    def __init__(self, asked: BinaryIO, answer: BinaryIO, setup: dict[str, Any], me: int) -> None:
        self._asked, self._answer, self._setup, self._me = asked, answer, setup, me
        self._both = wire.Both(self._stand_in, self._make)
        self._failed: BaseException | None = None
        self._student = types.ModuleType("student")
        self._last = 0  # the id of the last message from the judge

    def run(self) -> None:
        """Load the file, say how it went, and answer. The student's output goes to printed.txt."""
        setup, path = self._setup, self._setup["path"]
        source = Path(path).read_text("utf-8")
        warnings.simplefilter("once")
        if setup["engine"]:  # it reads its BLAS's files once; the hook would refuse that later
            importlib.import_module("minilora.backend.threads").threads()
        printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        limits = self._limits = guard.begin(setup)
        for stream, text in enumerate((sys.stdout, sys.stderr), 1):
            text.flush()
            os.dup2(printed, stream)
            text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        wire.ready(self._answer)
        self._say({"limits": limits})  # the student's time starts here
        guard.start_clock(setup["seconds"])
        module = _guarded(path, lambda: load(source, path), limits)
        student = module.pop("value", None)
        written = [name for name in setup["functions"] if callable(getattr(student, name, None))]
        self._last = 1
        self._say({"written": written, **module})
        if student is not None:
            self._student = student
            self._serve()

    def _serve(self) -> dict[str, Any]:
        """Do what is requested, until the answer to a call of this side comes; return that."""
        while os.getpid() == self._me:  # a forked copy must not answer
            message = self._both.unpack(wire.receive(self._asked))
            self._last = message["id"]
            if "return" in message or "raise" in message:
                return message
            if "fresh" in message:
                guard.start_clock(self._setup["seconds"])
            self._do(message)
        raise EOFError

    def _do(self, request: dict[str, Any]) -> None:
        """Do one request, and answer."""
        outcome = _guarded(self._setup["path"], lambda: self._done(request), self._limits)
        args = {"args": request["args"]} if request["after"] else {}
        try:
            self._say({**args, **outcome})
        except Exception as error:
            outcome = {"error": "Result", "message": "it returned a value that is no data"}
            if isinstance(error, wire.TooLong):
                most = f"{guard.size(wire.MOST)}, the limit of a result"
                outcome = {"error": LIMIT, "message": f"your code returned more than {most}"}
            elif isinstance(error, RecursionError):
                outcome["message"] = "it returned a value that contains itself"
            self._say({"frames": [], **outcome})

    def _done(self, request: dict[str, Any]) -> Any:
        """The result of a request."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed
        on, args = request["on"], request["args"]
        if request["do"] != "call":
            return VERBS[request["do"]](on, *args)
        if isinstance(on, str) and not hasattr(self._student, on):
            raise NameError(f"the file has no {on}")
        function: Callable[..., Any] = getattr(self._student, on) if isinstance(on, str) else on
        return function(*args, **request["named"])

    def _make(self, name: str, args: list[Any]) -> Any:
        """Make an object of the student's class. The request that needs it raises the error."""
        try:
            return getattr(self._student, name)(*args)
        except BaseException as error:
            self._failed = self._failed or error
            return None

    def _stand_in(self, kind: str, text: str, calls: bool) -> Callable[..., Any]:
        """What stands here for a function of the judge: a call of it asks the judge."""

        def call(*args: Any, **named: Any) -> Any:
            self._say({"call": call, "args": args, "named": named})
            answer = self._serve()
            if "raise" not in answer:
                return answer["return"]
            kind = getattr(builtins, answer["raise"][0], None)
            fits = isinstance(kind, type) and issubclass(kind, Exception)
            error: Any = kind if fits else RuntimeError
            raise error(answer["raise"][1])

        return call

    def _say(self, message: dict[str, Any]) -> None:
        wire.send(self._answer, self._both.pack({"id": self._last, **message}))


def load(source: str, path: str) -> types.ModuleType:
    """Run a student's file as a module."""
    module = types.ModuleType("student")
    module.__file__ = path
    code = builtins.compile(  # with its assertions, however Python was started
        ast.parse(source, path), path, "exec", dont_inherit=True, optimize=0
    )
    exec(code, vars(module))
    return module


def _guarded(path: str, run: Callable[[], Any], limits: Mapping[str, int]) -> dict[str, Any]:
    """Call `run`; return its value or its exception as data."""
    try:
        return {"value": run()}
    except BaseException as error:
        return error_data(error, path, limits)


def error_data(
    error: BaseException, path: str, limits: Mapping[str, int] = {}
) -> dict[str, Any]:
    """Return an exception as data: its kind, its message and its frames in the file `path`.

    An exception that a limit causes has the kind LIMIT and a message that names the limit.
    """
    frames = [
        [frame.lineno or 0, frame.name, frame.line or ""]
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    message = str(error)
    if isinstance(error, SyntaxError):
        frames = [[error.lineno or 0, "", (error.text or "").strip()]]
        message = error.msg
    if isinstance(error, RecursionError):
        frames = frames[:1]
    limit = _reached(error, message, limits)
    kind = type(error).__name__ if limit is None else LIMIT
    return {"error": kind, "message": (limit or message)[:400], "frames": frames[-5:]}


def _reached(error: BaseException, message: str, limits: Mapping[str, int]) -> str | None:
    """The limit that caused this exception, in words; None: no limit did."""
    if isinstance(error, RecursionError):
        most = f"{sys.getrecursionlimit()} calls, the limit"
        return f"the function calls itself without end: it is deeper than {most}"
    if isinstance(error, MemoryError) or "can't start new thread" in message:
        most = f"{guard.size(limits['memory'])}, the limit" if "memory" in limits else "there is"
        return f"your code needs more memory than {most}" + (f": {message}" if message else "")
    reached = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if reached == errno.EFBIG and "output" in limits:
        most = guard.size(limits["output"])
        return f"your code printed more than {most} in all calls, the limit of output: print less"
    if reached == errno.EMFILE and "files" in limits:
        return f"your code has more than {limits['files']} files open, the limit: close them"
    return None
