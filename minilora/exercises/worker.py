"""The process that runs a student's code. The checks run elsewhere.

It has limits of time, memory, output and files. It may not start a process, remove a file or open a
connection. That stops accidents and pranks; it is no security sandbox.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import functools
import importlib.util
import os
import signal
import sys
import traceback
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import book, wire

FORBIDDEN = (  # audit events
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
    "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown",
    "os.link", "os.symlink", "os.chdir", "os.mkdir", "shutil.rmtree", "shutil.move",
    "subprocess.Popen", "socket.__new__", "ctypes.dlopen", "resource.setrlimit",
    "resource.prlimit", "pty.spawn", "gc.get_objects", "gc.get_referrers", "gc.get_referents",
)
READS = ("open", "os.listdir", "os.scandir")
CLOSED = (  # modules that could bypass the hook
    "_posixsubprocess", "_ctypes", "_sqlite3", "_dbm", "_gdbm", "_multiprocessing",
    "_xxsubinterpreters", "_interpreters",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Answer requests until the end of the input. The student's output goes into printed.txt."""
    with open(os.dup(0), "rb") as asked, open(os.dup(1), "wb") as answer:
        printed = os.open("printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(printed, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for text in (sys.stdout, sys.stderr):
            text.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        me = os.getpid()
        if sys.platform == "linux":  # if the judge is killed, so is this process
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        setup = wire.receive(asked)
        with contextlib.suppress(EOFError):
            serve(asked, answer, setup, me)


def serve(asked: BinaryIO, answer: BinaryIO, setup: dict[str, Any], me: int) -> None:
    """Load the student's file, answer with the outcome, then call the requested functions."""
    path, drivers = setup["path"], book.drivers(Path(setup["exercise"]))
    source = Path(path).read_text("utf-8")
    warnings.simplefilter("once")
    if setup["engine"]:  # it reads its BLAS's files once; the hook would refuse that later
        importlib.import_module("minilora.backend.threads").threads()
    wire.send(answer, {"id": 0})  # the student's time starts here
    _limit(setup)
    module = _guarded(path, lambda: load(source, path))
    wire.send(answer, {"id": 1, **{k: v for k, v in module.items() if k != "value"}})
    if "value" not in module:
        return
    student = module["value"]
    while os.getpid() == me:  # a forked copy must not answer
        request = wire.receive(asked)
        name, args = request["name"], request["args"]
        if name in drivers:
            call = functools.partial(drivers[name], student, *args)
        else:
            call = functools.partial(getattr(student, name), *args)
        outcome = _guarded(path, call)
        try:
            wire.send(answer, {"id": request["id"], "args": args, **outcome})
        except Exception as error:
            outcome = {"error": "Result", "message": f"it returned {error}", "frames": []}
            wire.send(answer, {"id": request["id"], **outcome})


def load(source: str, path: str) -> types.ModuleType:
    """Run a student's file as a module."""
    module = types.ModuleType("student")
    module.__file__ = path
    code = builtins.compile(  # with its assertions, however Python was started
        ast.parse(source, path), path, "exec", dont_inherit=True, optimize=0
    )
    exec(code, vars(module))
    return module


def _guarded(path: str, run: Callable[[], Any]) -> dict[str, Any]:
    """Call `run`; return its value or its exception as data."""
    try:
        return {"value": run()}
    except BaseException as error:
        return error_data(error, path)


def error_data(error: BaseException, path: str) -> dict[str, Any]:
    """Return an exception as data: its kind, its message and its frames in the file `path`."""
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
        message, frames = "the function calls itself without end", frames[:1]
    kind = type(error).__name__
    return {"error": kind, "message": message[:400], "frames": frames[-5:]}


def _limit(setup: dict[str, Any]) -> None:
    """Set the operating system's limits, where it has them, and the hook that refuses actions."""
    if os.name == "posix":
        resource = importlib.import_module("resource")
        for name, most in (
            ("RLIMIT_CPU", setup["cpu"]), ("RLIMIT_AS", setup["memory"]),
            ("RLIMIT_FSIZE", setup["output"]), ("RLIMIT_NOFILE", 64), ("RLIMIT_CORE", 0),
        ):
            with contextlib.suppress(ValueError, OSError):
                hard = resource.getrlimit(getattr(resource, name))[1]
                most = most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.setrlimit(getattr(resource, name), (most, most))
    hidden = __package__ if setup["engine"] else "minilora"  # solutions are in there
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{hidden}.")]:
        sys.modules[name] = None  # type: ignore[assignment]
    for module in ("signal", "_signal", *["_posixsubprocess"] * (os.name == "posix")):
        namespace = vars(importlib.import_module(module))
        for name in {"pidfd_send_signal", "fork_exec"} & {*namespace}:
            namespace[name] = _refuse  # these raise no audit event
    sys.addaudithook(_hook(bool(setup["engine"]), os.getcwd()))


def _refuse(*_: Any, **__: Any) -> None:
    raise PermissionError("an exercise only computes; this starts or signals a process")


def _paths() -> Any:
    """Return a second copy of os.path, with its own os: a student cannot patch it."""
    spec = importlib.util.find_spec(os.path.__name__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    vars(fresh)["__builtins__"] = {**vars(builtins)}
    spec.loader.exec_module(fresh)
    for used in ("os", "stat", "genericpath"):
        setattr(fresh, used, types.SimpleNamespace(**vars(importlib.import_module(used))))
    return fresh


def _hook(engine: bool, folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """Return the audit hook. Its names are its own, so that a student cannot change their meaning.

    It allows reads of Python's and NumPy's files and of the student's folder; never the exercises.
    """
    real, name, sep, null = _paths().realpath, os.fsdecode, os.sep, os.devnull
    forbidden, reads, closed, writing = FORBIDDEN, READS, CLOSED, WRITES
    own, package = real(book.FOLDER), real(book.FOLDER.parents[1])
    allowed = (os.path.dirname(os.__file__), os.path.dirname(np.__path__[0]), folder)
    inside = tuple(real(one) + sep for one in allowed + ((f"{package}/minilora",) * engine))
    files = (null, "/dev/urandom", *([package] if engine else []))
    roots = ("numpy", *sys.stdlib_module_names, *(["minilora"] if engine else []))

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in forbidden or event.startswith("ctypes."):
            raise PermissionError(f"an exercise only computes; this calls {event}")
        if event == "import":
            root = args[0].split(".")[0]
            if not (root in roots or root[0] == "_") or args[0] in closed:
                raise ImportError(f"an exercise only computes; this imports {args[0]}")
        elif event in reads and not isinstance(args[0], int):
            path = name(args[0] or ".")
            if event == "open" and isinstance(args[2], int) and args[2] & writing:
                if path != null:
                    raise PermissionError(f"an exercise only computes; this opens {path} to write")
                return
            file = real(path)
            good = file in files or (file + sep).startswith(inside)
            if not good or (file + sep).startswith(own + sep):
                raise PermissionError(f"an exercise only computes; this reads {path}")

    alone = {"__builtins__": {**vars(builtins)}}
    return types.FunctionType(hook.__code__, alone, None, None, hook.__closure__)
