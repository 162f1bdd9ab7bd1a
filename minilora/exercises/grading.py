"""A class's submissions, judged: one file each or a folder each, whatever is in them.

Each file runs in a process of its own with limits, and its judge in another: what ends or hangs
either costs that file its points, and nothing else. That stops accidents and pranks. It is NOT A
SECURITY SANDBOX: grade submissions of strangers in a container or a virtual machine.

The same files, seed and versions give the same Class, with any number of jobs. What cannot be the
same: an answer that draws random numbers without a seed, or that takes about as long as it may.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..files import atomic
from .book import FOLDER, Exercise, exercise, paths
from .judge import Verdict, judge
from .student import LIMITS, Limits
from .submissions import plain, read, submissions

PATIENCE = (
    20.0  # times the seconds that one call may take, for a whole file: then its judge is ended
)
STATES = {  # kinds of what ends all checks
    "absent": "absent", "unreadable": "unreadable", "todo": "not begun", "missing": "no function",
    "imports": "forbidden import", "SyntaxError": "syntax error", "halted": "halted",
}
PACKAGE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Part:
    """What became of one check."""

    title: str
    points: int
    of: int
    kind: str = ""  # "" of a wrong result or a right one; "todo", "halted", "missing", ...
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What became of one student's file for one exercise."""

    number: str
    points: int
    of: int
    parts: tuple[Part, ...]
    mistakes: tuple[str, ...] = ()  # the known ones that explain what is wrong

    @property
    def passed(self) -> bool:
        return self.points == self.of

    @property
    def state(self) -> str:
        """passed, partly, wrong, raised, or one of STATES."""
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
    """An exercise as a table shows it."""

    number: str
    title: str
    points: int


@dataclass(frozen=True)
class Class:
    """All of them. left_out: what lies among the submissions and is none."""

    seed: int
    tasks: tuple[Task, ...]
    pupils: tuple[Pupil, ...]
    left_out: tuple[str, ...] = ()

    @property
    def of(self) -> int:
        return sum(task.points for task in self.tasks)


def grade(
    folder: str | os.PathLike[str],
    seed: int = 0,
    jobs: int = 1,
    say: Callable[[str], None] = print,
    *,
    only: Sequence[str] | None = None,
    kept: str | os.PathLike[str] | None = None,
    limits: Limits = LIMITS,
) -> Class:
    """Judge every submission in a folder, `jobs` at a time.

    A folder in it is a student, and so is a file STUDENT-ex02_anything.py or STUDENT.py (the latter
    where one exercise is graded). A folder that holds exNN_name.py files itself is one student.
    only: the numbers of the exercises; None: all. kept: a folder in which results are kept, so that
    a run that was interrupted goes on; None: none are.

    Raises ValueError where the folder or an exercise is not there, or nothing is submitted.
    """
    of = tuple(exercise(number) for number in only or paths())
    handed, left_out = submissions(Path(folder), of)
    store = _Store(Path(kept) if kept is not None else None, seed, limits)
    found: dict[tuple[str, str], Result] = {}
    todo: list[tuple[str, Exercise, str, str]] = []
    for name, files in handed.items():
        for one in of:
            source, problem = read(files.get(one.number))
            key = store.key(one, source)
            held = _nothing(one, *problem) if problem else store.get(key)
            if held is not None:
                found[name, one.number] = held
            else:
                todo.append((name, one, source, key))
    if found:
        say(f"{len(found)} of {len(found) + len(todo)} need no judging: absent, or judged before")
    lock, judges = threading.Lock(), queue.SimpleQueue[_Judge]()
    open_ = [_Judge(seed, limits) for _ in range(max(1, min(jobs, len(todo))))] if todo else []
    for one_ in open_:
        judges.put(one_)
    stopped = threading.Event()

    def do(item: tuple[str, Exercise, str, str]) -> None:
        if stopped.is_set():
            return
        name, one, source, key = item
        judging = judges.get()
        try:
            result = judging.result(one, source)
        finally:
            judges.put(judging)
        with lock:
            store.put(key, result)
            found[name, one.number] = result
            say(f"{len(found)}/{len(handed) * len(of)}  {plain(name)}  {one.number}: "
                f"{result.points} of {result.of}")

    try:
        with ThreadPoolExecutor(len(open_) or 1) as pool:
            try:
                for _ in pool.map(do, todo):
                    pass
            except BaseException:
                stopped.set()
                for one_ in open_:
                    one_.close()
                raise
    finally:
        for one_ in open_:
            one_.close()
    return Class(
        seed, tuple(Task(one.number, one.title, one.points) for one in of),
        tuple(Pupil(name, tuple(found[name, one.number] for one in of)) for name in handed),
        tuple(left_out),
    )


def _nothing(of: Exercise, kind: str, line: str) -> Result:
    parts = tuple(Part(check.title, 0, check.points, kind, (line,)) for check in of.checks)
    return Result(of.number, 0, of.points, parts)


def _result(verdict: Verdict) -> Result:
    parts = tuple(
        Part(one.title, one.points, one.of, one.kind, tuple(map(plain, one.lines)))
        for one in verdict.outcomes
    )
    of = verdict.exercise
    return Result(of.number, verdict.points, of.points, parts, verdict.mistakes)


class _Judge:
    """A process that judges one file after another; where it ends or hangs, another is begun."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self._seed, self._limits = seed, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._patience = PATIENCE * limits.seconds + 4 * limits.whole

    def result(self, of: Exercise, source: str) -> Result:
        """Of one file. Never raises because of what is in the file."""
        request = {"number": of.number, "source": source, "seed": self._seed,
                   "limits": asdict(self._limits)}
        line, process = b"", self._running()
        assert process.stdin is not None and process.stdout is not None
        timer = threading.Timer(self._patience, process.kill)
        timer.start()
        with contextlib.suppress(OSError, ValueError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        timer.cancel()
        if self._closed:
            raise KeyboardInterrupt
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return _made(json.loads(line))
        self._end()
        return _nothing(of, "halted", "it could not be judged: its judge ended or hung")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            code = f"import sys; sys.path.insert(0, {PACKAGE!r}); " \
                   "from minilora.exercises.grading import serve; serve()"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def close(self) -> None:
        """End it: at the end of its input it ends what it runs, and then itself."""
        self._closed = True
        process = self._process
        if process is None:
            return
        with contextlib.suppress(OSError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        self._end()


def serve() -> None:
    """Judge what is asked for, a line of JSON each, until there is no more."""
    import signal

    from .book import exercises

    def stop(*_: Any) -> None:
        raise SystemExit  # the student's process is ended on the way out

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asks says when to stop
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    exercises()  # all, and first: Hypothesis draws constants from what is loaded
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        of = exercise(asked["number"])
        try:
            verdict = judge(
                of, asked["source"], seed=asked["seed"], limits=Limits(**asked["limits"])
            )
            result = _result(verdict)
        except Exception as error:
            result = _nothing(of, "halted", f"it could not be judged: {type(error).__name__}")
        answers.write(json.dumps(asdict(result)).encode() + b"\n")
        answers.flush()


def _made(held: Mapping[str, Any]) -> Result:
    parts = tuple(Part(**{**part, "lines": tuple(part["lines"])}) for part in held["parts"])
    return Result(**{**held, "parts": parts, "mistakes": tuple(held["mistakes"])})


class _Store:
    """Results by what they were made from."""

    def __init__(self, folder: Path | None, seed: int, limits: Limits) -> None:
        self._folder, self._with = folder, f"{seed} {asdict(limits)} {_versions()}"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def key(self, of: Exercise, source: str) -> str:
        """A digest of all that a result depends on."""
        parts = (self._with, of.path.read_text("utf-8"), source)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]

    def get(self, key: str) -> Result | None:
        if self._folder is None:
            return None
        try:
            return _made(json.loads((self._folder / f"{key}.json").read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # none, or a damaged one: it is judged again

    def put(self, key: str, result: Result) -> None:
        if self._folder is not None:
            with atomic.writing(self._folder / f"{key}.json") as file:
                file.write(json.dumps(asdict(result)).encode())


@functools.cache
def _versions() -> str:
    """The package's version and this folder's code, which judges; Python's and NumPy's."""
    code = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        code.update(path.read_bytes())
    return f"{__version__} {code.hexdigest()} {sys.version} {np.__version__}"
