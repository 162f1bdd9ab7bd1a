"""Grade a class: judge every student's file for every exercise.

Each file runs in its own process with limits, and its judge in another process. A file that crashes
or hangs loses its own points only. That stops accidents and pranks. It is NOT A SECURITY SANDBOX:
grade submissions of strangers in a container or a virtual machine.

The same files, seed and versions give the same Class, with any number of jobs. Two kinds of answers
may differ: those that draw random numbers without a seed, and those close to a limit of time.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from .. import __version__
from ..files import atomic, text
from . import wire
from .book import FOLDER, Exercise, exercise, paths
from .child import BEGIN, Fault, fault, start
from .judge import Verdict, judge
from .student import LIMITS, Limits
from .submissions import plain, read, submissions
from .worker import LIMIT

PATIENCE = 300.0  # seconds of a judge for one file, plus 4 times the limit of all calls
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


def grade(
    folder: str | os.PathLike[str], seed: int = 0, jobs: int = 1,
    say: Callable[[str], None] = print, *, only: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None, limits: Limits = LIMITS,
) -> Class:
    """Judge every submission in a folder, `jobs` at a time.

    A student is a folder in it, or a file STUDENT-ex02_anything.py; if one exercise is graded, also
    a file STUDENT.py. A folder that contains files exNN_name.py itself is one student.
    only: the numbers of the exercises; None: all. store: a folder for finished results, so that
    an interrupted run can continue; None: results are not stored.

    Raises ValueError for a missing folder, an unknown exercise, or a folder without submissions;
    Fault if the judge cannot run any exercise.
    """
    of = tuple(exercise(number) for number in only or paths())
    submitted, left_out = submissions(Path(folder), of)
    stored = _Store(Path(store) if store is not None else None, seed, limits)
    results: dict[tuple[str, str], Result] = {}
    todo: list[tuple[str, Exercise, str, str]] = []
    for name, files in submitted.items():
        for one in of:
            source, problem = read(files.get(one.number))
            key = stored.key(one, source)
            known = _nothing(one, *problem) if problem else stored.get(key)
            if known is not None:
                results[name, one.number] = known
            else:
                todo.append((name, one, source, key))
    if results:
        say(f"{len(results)} of {len(results) + len(todo)} need no judging: no file, or judged "
            "before")
    lock, judges = threading.Lock(), queue.SimpleQueue[_Judge]()
    open_ = [_Judge(seed, limits) for _ in range(max(1, min(jobs, len(todo))))] if todo else []
    for worker in open_:
        judges.put(worker)
    stopped = threading.Event()

    def judge_one(item: tuple[str, Exercise, str, str]) -> None:
        if stopped.is_set():
            return
        name, one, source, key = item
        worker = judges.get()
        try:
            result = worker.result(one, source)
        except BaseException:
            stopped.set()
            raise
        finally:
            judges.put(worker)
        with lock:
            if result.state != STATES[UNJUDGED]:
                stored.put(key, result)
            results[name, one.number] = result
            say(f"{len(results)}/{len(submitted) * len(of)}  {plain(name)}  {one.number}: "
                f"{result.points} of {result.of}")

    try:
        with ThreadPoolExecutor(len(open_) or 1) as pool:
            try:
                for _ in pool.map(judge_one, todo):
                    pass
            except BaseException:
                stopped.set()
                for worker in open_:
                    worker.close()
                raise
    finally:
        for worker in open_:
            worker.close()
    return Class(
        seed, tuple(Task(one.number, one.title, one.points) for one in of),
        tuple(Pupil(name, tuple(results[name, one.number] for one in of)) for name in submitted),
        tuple(left_out),
    )


def _nothing(of: Exercise, kind: str, line: str) -> Result:
    """A result without points: the same problem in every check."""
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
    """A process that judges one file after another. One that ends is replaced, and tries again."""

    def __init__(self, seed: int, limits: Limits) -> None:
        self._seed, self._limits = seed, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._words: IO[bytes] | None = None
        self._closed = False
        self._patience = PATIENCE + 4 * limits.total

    def result(self, of: Exercise, source: str) -> Result:
        """Return the result of one file. Never raises because of the file's content."""
        request = {"number": of.number, "source": source, "seed": self._seed,
                   "limits": asdict(self._limits)}
        for _ in range(2):
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            with self._patient(self._patience), contextlib.suppress(OSError, ValueError):
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                answer = json.loads(process.stdout.readline())
                if "fault" in answer:
                    raise Fault(answer["fault"])
                return _result_of(answer)
            if self._closed:
                raise KeyboardInterrupt
            self._end()
        return _nothing(of, UNJUDGED, "it could not be judged: the judge's process ended or hung")

    @contextlib.contextmanager
    def _patient(self, seconds: float) -> Iterator[None]:
        """End the process if the block takes longer."""
        assert self._process is not None
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process; start it if there is none. Raises Fault if it cannot begin."""
        if self._process is None:
            self._process, self._words = start("grading", "serve")
            assert self._process.stdout is not None
            try:
                with self._patient(BEGIN):
                    wire.wait(self._process.stdout)
            except (EOFError, OSError, ValueError):
                if self._closed:
                    raise KeyboardInterrupt from None
                code = self._process.wait()
                error = fault(f"its process ended with exit code {code}", self._words)
                self._end()
                raise error from None
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, self._words):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def close(self) -> None:
        """Ask the process to end itself and the student's process; then end it."""
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
    """Answer requests, a line of JSON each, until the end of the input."""
    import signal

    from .book import exercises

    def stop(*_: Any) -> None:
        raise SystemExit  # unwinding ends the student's process

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    asked, answers = wire.streams()
    exercises()  # load all first: Hypothesis draws constants from the loaded modules
    wire.ready(answers)
    for line in asked:
        request = json.loads(line)
        of, limits = exercise(request["number"]), Limits(**request["limits"])
        try:
            result = asdict(
                _result(judge(of, request["source"], seed=request["seed"], limits=limits))
            )
        except Fault as error:
            result = {"fault": str(error)}
        except Exception as error:
            words = f"it could not be judged: {type(error).__name__}"
            result = asdict(_nothing(of, UNJUDGED, words))
        answers.write(json.dumps(result).encode() + b"\n")
        answers.flush()


def _result_of(data: Mapping[str, Any]) -> Result:
    """The inverse of asdict."""
    parts = tuple(Part(**{**part, "lines": tuple(part["lines"])}) for part in data["parts"])
    return Result(**{**data, "parts": parts, "mistakes": tuple(data["mistakes"])})


class _Store:
    """Finished results, by a digest of everything that they depend on."""

    def __init__(self, folder: Path | None, seed: int, limits: Limits) -> None:
        self._folder, self._basis = folder, f"{seed} {asdict(limits)} {_versions()}"
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def key(self, of: Exercise, source: str) -> str:
        """Return the digest for one file."""
        parts = (self._basis, text.read(of.path), source)
        return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]

    def get(self, key: str) -> Result | None:
        if self._folder is None:
            return None
        try:
            return _result_of(json.loads((self._folder / f"{key}.json").read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # missing or damaged: judge the file again

    def put(self, key: str, result: Result) -> None:
        if self._folder is not None:
            with atomic.writing(self._folder / f"{key}.json") as file:
                file.write(json.dumps(asdict(result)).encode())


@functools.cache
def _versions() -> str:
    """The versions of the package, Python and NumPy, and a digest of this folder's code."""
    code = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        code.update(path.read_bytes())
    return f"{__version__} {code.hexdigest()} {sys.version} {np.__version__}"
