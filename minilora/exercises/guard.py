"""What a student's code may use and do: limits of the system, and refusals.

There are two walls. A hook reads Python's own reports ("audit events") and refuses what no exercise
needs. Where Linux has Landlock, the kernel refuses too: it opens no file but those of Python, NumPy
and the student, whatever path leads to it. That stops accidents and pranks; it is no sandbox.
"""

from __future__ import annotations

import builtins
import contextlib
import ctypes
import importlib
import importlib.util
import math
import os
import signal
import struct
import sys
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

FORBIDDEN = (  # audit events
    "os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
    "os.killpg", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.chmod", "os.chown",
    "os.link", "os.symlink", "os.chdir", "os.mkdir", "os.utime", "os.setxattr", "os.removexattr",
    "os.lockf", "os.chflags", "shutil.rmtree", "shutil.move", "subprocess.Popen", "socket.__new__",
    "ctypes.dlopen", "resource.setrlimit", "resource.prlimit", "pty.spawn", "gc.get_objects",
    "gc.get_referrers", "gc.get_referents", "sys._current_frames", "syslog.openlog",
)
READS = ("open", "os.listdir", "os.scandir", "os.listxattr", "os.getxattr")
CLOSED = (  # modules that could bypass the hook, or bring back what is refused below
    "_posixsubprocess", "_ctypes", "_sqlite3", "_dbm", "_gdbm", "_multiprocessing", "_tkinter",
    "_xxsubinterpreters", "_interpreters", "_posixshmem", "readline", "_curses", "_imp", "_signal",
    "posix", "nt", "_testcapi", "_testinternalcapi",
)
SILENT = {  # functions that no audit event reports, and that no exercise needs
    "mknod", "mkfifo", "chroot", "fchdir", "unshare", "setns", "readlink", "pidfd_open",
    "pidfd_send_signal", "pidfd_getfd", "fork_exec", "memfd_create", "copy_file_range", "splice",
    "sendfile", "openpty", "posix_openpt", "login_tty", "setsid", "setpgid", "setpriority", "nice",
    "sched_setaffinity", "pthread_kill", "tcsetpgrp", "setuid", "setgid", "statvfs",
}
FILES = 64  # open files
ROOM = 64 << 20  # bytes of memory that a student's code can use, or the judge does not begin
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EXERCISES = Path(__file__).parent
PACKAGE = EXERCISES.parent
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")  # of modules in C
# Landlock, <linux/landlock.h>: its system calls, and its rights to files
CREATE, ADD, RESTRICT = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version -> how many rights it knows


def begin(setup: dict[str, Any]) -> dict[str, int]:
    """Set the system's limits, where it has them, and refuse from now on what is forbidden.

    Returns the limits in force: those of this process may be lower. Raises MemoryError if its
    memory is used up already.
    """
    limits = {name: setup[name] for name in ("cpu", "memory", "output")} | {"files": FILES}
    if os.name == "posix":
        _limit(limits)
    hidden = __package__ if setup["engine"] else "minilora"  # solutions are in there
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{hidden}.")]:
        sys.modules[name] = None  # type: ignore[assignment]
    engine, folder = bool(setup["engine"]), os.getcwd()
    readable = [os.path.dirname(os.__file__), *_installed(), folder, *[str(PACKAGE)] * engine]
    hook = _hook(engine, readable)
    with contextlib.suppress(OSError, AttributeError, ValueError):  # a system without Landlock
        _locked(readable, [EXERCISES, *map(Path, setup["hidden"])])
    _silenced()
    sys.addaudithook(hook)
    return limits


def _installed() -> list[str]:
    """NumPy's folders. Beside it are other packages: an exercise does not need them."""
    beside = Path(np.__path__[0]).parent
    return [str(path) for path in (beside / "numpy", beside / "numpy.libs") if path.exists()]


def _limit(limits: dict[str, int]) -> None:
    resource = importlib.import_module("resource")
    for name in ("SIGPROF", "SIGXCPU"):  # the two limits of the processor's time end it
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    before = math.ceil(time.process_time())  # seconds that are not the student's
    for name, key in (
        ("RLIMIT_CPU", "cpu"), ("RLIMIT_AS", "memory"), ("RLIMIT_FSIZE", "output"),
        ("RLIMIT_NOFILE", "files"), ("RLIMIT_CORE", ""),
    ):
        with contextlib.suppress(ValueError, OSError):
            hard, most = resource.getrlimit(getattr(resource, name))[1], limits.get(key, 0)
            most += before * (key == "cpu")
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            above = most + (key == "cpu" and most != hard)  # first SIGXCPU, then SIGKILL
            resource.setrlimit(getattr(resource, name), (most, above))
            if key:
                limits[key] = most - before * (key == "cpu")
    try:
        bytearray(ROOM)
    except MemoryError:
        words = f"the limit of memory, {size(limits['memory'])}, is too little to begin"
        raise MemoryError(words) from None


def size(count: int) -> str:
    """Return a number of bytes as text: 2 GiB."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >> shift:
            return f"{count / (1 << shift):.4g} {unit}"
    return f"{count} bytes"


def start_clock(seconds: float) -> None:
    """End this process by SIGPROF after so much more time of the processor, where that exists."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _locked(readable: Iterable[str], hidden: Iterable[Path]) -> None:
    """Let the kernel open only these files and folders for this process, and no hidden one."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "no Landlock")
    every = (1 << RIGHTS.get(version, 16)) - 1
    scoped = 0b11 if version >= 6 else 0  # no signals and sockets to processes outside
    given = struct.pack("QQQ", every, 0, scoped)[: 24 if version >= 6 else 8]
    ruleset = call(CREATE, given, ctypes.c_size_t(len(given)), 0)
    never = [str(path.resolve()) for path in hidden]

    def allow(path: str, rights: int) -> None:
        with contextlib.suppress(OSError):
            place = os.open(path, os.O_PATH)
            if not os.path.isdir(path):
                rights &= ~READ_DIR
            call(ADD, ruleset, 1, struct.pack("=Qi", rights, place), 0)
            os.close(place)

    def allow_below(path: str) -> None:
        path = os.path.realpath(path)
        if any((path + os.sep).startswith(one + os.sep) for one in never):
            return
        if not any(one.startswith(path.rstrip(os.sep) + os.sep) for one in never):
            allow(path, READ_FILE | READ_DIR)
            return
        allow(path, READ_DIR)  # names only; then each thing in it but what is hidden
        for entry in os.scandir(path):
            allow_below(entry.path)

    for path in (*readable, *LIBRARIES):
        if os.path.exists(path):
            allow_below(path)
    allow(os.devnull, READ_FILE | WRITE_FILE)
    allow("/dev/urandom", READ_FILE)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges, which the next call needs
    if ruleset < 0 or call(RESTRICT, ruleset, 0):
        raise OSError(ctypes.get_errno(), "no Landlock")
    os.close(ruleset)


def _silenced() -> None:
    """Replace the functions in SILENT wherever a module or one of os's sets holds them."""
    sets = [value for name, value in vars(os).items() if name.startswith("supports_")
            and isinstance(value, set)]
    with contextlib.suppress(ImportError):  # subprocess may be imported: numpy.testing does it
        importlib.import_module("_posixsubprocess")
    for module in ("posix", "nt", "os", "signal", "_signal", "_posixsubprocess"):
        namespace = vars(sys.modules.get(module) or types.ModuleType(module))
        for name in SILENT & {*namespace}:
            for one in sets:
                one.discard(namespace[name])
            namespace[name] = _refuse
    for module in ("ctypes", "_ctypes"):  # they could write anywhere in memory
        namespace = vars(sys.modules.get(module) or types.ModuleType(module))
        for name in [name for name in namespace if not name.startswith("__")]:
            del namespace[name]
    imp = vars(sys.modules["_imp"])
    create = imp["create_builtin"]

    def create_builtin(spec: Any) -> Any:
        if str.__str__(spec.name) in CLOSED:
            raise ImportError(f"an exercise only computes; this imports {spec.name}")
        return create(types.SimpleNamespace(name=str.__str__(spec.name)))

    imp["create_builtin"] = create_builtin


def _refuse(*_: Any, **__: Any) -> None:
    raise PermissionError("an exercise only computes; this starts or signals a process, or makes "
                          "a special file")


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


def _hook(engine: bool, readable: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Return the audit hook. Its names are its own, so that a student cannot change their meaning.

    It allows reads of these folders; never the exercises. It calls no method of what it is given:
    that could be a student's.
    """
    real, sep, null = _paths().realpath, os.sep, os.devnull
    forbidden, reads, closed, writing = FORBIDDEN, READS, CLOSED, WRITES
    own, package = real(EXERCISES), real(PACKAGE.parent)
    inside = tuple(real(one) + sep for one in readable)
    site = os.path.dirname(real(np.__path__[0]))
    files = (null, "/dev/urandom", site, *([package] if engine else []))
    sys.path[:] = [one for one in map(real, sys.path)  # an import looks into each of them
                   if one in files or (one + sep).startswith(inside)]
    roots = ("numpy", *sys.stdlib_module_names, *(["minilora"] if engine else []))
    text, data, decode, length = str.__str__, bytes.__getitem__, os.fsdecode, slice(None)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in forbidden or event.startswith("ctypes."):
            raise PermissionError(f"an exercise only computes; this calls {event}")
        if event == "import":
            name = text(args[0])
            root = name.split(".")[0]
            if not (root in roots or root[:1] == "_") or name.rpartition(".")[2] in closed:
                raise ImportError(f"an exercise only computes; this imports {name}")
        elif event in reads:
            given, kind = args[0], type(args[0])
            if kind is int and event == "open":
                return  # it was opened before
            if issubclass(kind, str):
                path = text(given)
            elif issubclass(kind, bytes):
                path = decode(data(given, length))
            elif given is None:
                path = "."
            else:
                raise PermissionError("an exercise only computes; this reads by a descriptor")
            if event == "open" and type(args[2]) is int and args[2] & writing:
                if path != null:
                    raise PermissionError(f"an exercise only computes; this opens {path} to write")
                return
            if event == "open" and args[1] is None and path[:1] != sep and sep == "/":
                raise PermissionError(  # of a folder that no event names
                    f"an exercise only computes; this reads {path} by a descriptor")
            file = real(path)
            good = file in files or (file + sep).startswith(inside)
            if not good or (file + sep).startswith(own + sep):
                raise PermissionError(f"an exercise only computes; this reads {path}")

    alone = {"__builtins__": {**vars(builtins)}}
    return types.FunctionType(hook.__code__, alone, None, None, hook.__closure__)
