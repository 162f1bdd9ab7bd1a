"""Grade a class: judge every student's file for every exercise.

Each file runs in its own process with limits, and its judge in another process. A file that crashes
or hangs loses its own points only. That stops accidents and pranks. It is NOT A SECURITY SANDBOX:
grade submissions of strangers in a container or a virtual machine.

The same files, seed and versions give the same Class, with any number of jobs. Two kinds of answers
may differ: those that draw random numbers without a seed, and those close to a limit of time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from . import wire
from .book import Exercise, exercise, paths
from .child import BEGIN, Fault, fault, start
from .judge import judge
from .results import STATES, UNJUDGED, Class, Pupil, Result, Task, nothing, result_from, result_of
from .soundness import assure
from .store import Store
from .student import LIMITS, Limits
from .submissions import plain, read, submissions

PATIENCE = 300.0  # seconds of a judge for one file, plus 4 times the limit of all calls
ABSENT = "there is no file for this exercise"


def grade(
    folder: str | os.PathLike[str], seed: int = 0, jobs: int = 1,
    say: Callable[[str], None] = print, *, only: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None, limits: Limits = LIMITS, alone: bool = False,
) -> Class:
    """Judge every submission in a folder, `jobs` at a time.

    submissions.py says who is a student. alone: the folder is one student, whatever is in it.
    only: the numbers of the exercises; None: all. store: a folder for finished results, so that
    an interrupted run can continue; None: results are not stored.

    Raises ValueError for an unknown exercise, and as `submissions` does; Fault if the judge cannot
    run exercises, or one of them: no result of that one is kept. KeyboardInterrupt says what was
    kept.
    """
    of = chosen(only)
    submitted, left_out = submissions(Path(folder), of, alone)
    stored = Store(Path(store) if store is not None else None, seed, limits)
    results: dict[tuple[str, str], Result] = {}
    todo: list[tuple[str, Exercise, str, str]] = []
    for name, files in submitted.items():
        for one in of:
            source, problem = read(files.get(one.number, ABSENT))
            key = stored.key(one, source)
            known = nothing(one, *problem) if problem else stored.get(key)
            if known is not None:
                results[name, one.number] = known
            else:
                todo.append((name, one, source, key))
    if results:
        say(f"{len(results)} of {len(results) + len(todo)} need no judging: no file, or judged "
            "before")
    judged_before = len(results)

    def note(name: str, one: Exercise, key: str, result: Result) -> None:
        if result.state != STATES[UNJUDGED]:
            stored.put(key, result)
        results[name, one.number] = result
        say(f"{len(results)}/{len(submitted) * len(of)}  {plain(name)}  {one.number}: "
            f"{result.points} of {result.of}")

    try:
        _judged(todo, note, seed, limits, jobs)
    except KeyboardInterrupt:
        count = f"{len(results) - judged_before} of {len(todo)} files were judged"
        kept = "their results were kept: run the same command to continue"
        raise KeyboardInterrupt(
            f"interrupted: {count}, and {kept if store is not None else 'nothing was kept'}"
        ) from None
    return Class(
        seed, tuple(Task(one.number, one.title, one.points) for one in of),
        tuple(Pupil(name, tuple(results[name, one.number] for one in of)) for name in submitted),
        tuple(left_out),
    )


def _judged(
    todo: Sequence[tuple[str, Exercise, str, str]],
    note: Callable[[str, Exercise, str, Result], None], seed: int, limits: Limits, jobs: int,
) -> None:
    """Judge each (name, exercise, source, key), and note its result. Nothing stays behind."""
    lock, judges, stopped = threading.Lock(), queue.SimpleQueue[_Judge](), threading.Event()
    with contextlib.ExitStack() as opened:
        if not todo:
            return
        try:
            place = tempfile.TemporaryDirectory(prefix="minilora-", ignore_cleanup_errors=True)
        except OSError as error:
            raise fault(f"a temporary folder cannot be made: {error}") from error
        within = opened.enter_context(place)
        workers = [_Judge(seed, limits, within) for _ in range(max(1, min(jobs, len(todo))))]
        for worker in workers:
            opened.callback(worker.close)
            judges.put(worker)

        def judge_one(item: tuple[str, Exercise, str, str]) -> None:
            if stopped.is_set():
                return
            name, one, source, key = item
            worker = judges.get()
            try:
                result = worker.result(one, source)
                with lock:
                    note(name, one, key, result)
            except BaseException:
                stopped.set()
                raise
            finally:
                judges.put(worker)

        pool = opened.enter_context(ThreadPoolExecutor(len(workers)))
        try:
            for _ in pool.map(judge_one, todo):
                pass
        except BaseException:
            stopped.set()
            for worker in workers:
                worker.close()
            raise


def chosen(only: Sequence[str] | None) -> tuple[Exercise, ...]:
    """Return the exercises with these numbers, each once; None: all. Raises ValueError."""
    return tuple({(one := exercise(number)).number: one for number in only or paths()}.values())


class _Judge:
    """A process that judges one file after another. One that ends is replaced, and tries again."""

    def __init__(self, seed: int, limits: Limits, within: str) -> None:
        self._seed, self._limits, self._within = seed, limits, within
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
                return result_of(answer)
            if self._closed:
                raise KeyboardInterrupt
            self._end()
        return nothing(of, UNJUDGED, "it could not be judged: the judge's process ended or hung")

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
            here = {**os.environ, "TMPDIR": self._within}
            self._process, self._words = start("grading", "serve", env=here)
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
            verdict = judge(of, request["source"], seed=request["seed"], limits=limits)
            assure(of, verdict)
            result = asdict(result_from(verdict))
        except Fault as error:
            result = {"fault": str(error)}
        except Exception as error:
            words = f"it could not be judged: {type(error).__name__}"
            result = asdict(nothing(of, UNJUDGED, words))
        answers.write(json.dumps(result).encode() + b"\n")
        answers.flush()
