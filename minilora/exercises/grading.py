"""Grade a class: judge every student's file for every exercise.

Each file runs in its own process with limits, and its judge in another process. A file that crashes
or hangs loses its own points only. That stops accidents and pranks. It is NOT A SECURITY SANDBOX:
grade submissions of strangers in a container or a virtual machine.

The same files, seed and versions give the same Class, with any executor. Two kinds of answers may
differ: those that draw random numbers without a seed, and those close to a limit of time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ..backend.threads import threads
from ..files.journal import Journal
from ..jobs.driver import Job, do
from ..jobs.executors import Pool
from . import wire
from .book import Exercise, exercise, paths
from .child import BEGIN, Fault, fault, start
from .judge import judge
from .results import UNJUDGED, Class, Pupil, Result, Task, nothing, result_from, result_of
from .soundness import assure
from .store import File, Grades, versions
from .student import LIMITS, Limits
from .submissions import plain, read, submissions

PATIENCE = 300.0  # seconds of a judge for one file, plus 4 times the limit of all calls
ABSENT = "there is no file for this exercise"


def grade(
    folder: str | os.PathLike[str], seed: int = 0, jobs: int = 1,
    say: Callable[[str], None] = print, *, only: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None, limits: Limits = LIMITS, alone: bool = False,
    executor: Pool | None = None,
) -> Class:
    """Judge every submission in a folder, `jobs` at a time. Files with one text are judged once.

    submissions.py says who is a student. alone: the folder is one student, whatever is in it.
    only: the numbers of the exercises; None: all. store: a folder for finished results, so that
    an interrupted run can continue; None: results are not stored. executor: where files are judged,
    as many at a time as it has workers; None: by `jobs` processes of this one.

    Raises ValueError for an unknown exercise, for a journal in the store that is damaged or in use,
    and as `submissions` does; RuntimeError for a worker with other versions; Fault if the judge
    cannot run exercises, or one of them: no result of that one is kept. KeyboardInterrupt says what
    was kept.
    """
    of = chosen(only)
    submitted, left_out = submissions(Path(folder), of, alone)
    results: dict[tuple[str, str], Result] = {}
    files: dict[str, File] = {}
    whose: dict[str, list[tuple[str, str]]] = {}  # the students and numbers of each file
    for name, theirs in submitted.items():
        for one in of:
            source, problem = read(theirs.get(one.number, ABSENT))
            if problem:
                results[name, one.number] = nothing(one, *problem)
            else:
                file = File.of(one, source, seed, limits)
                whose.setdefault(key := file.key, []).append((name, one.number))
                files[key] = file
    total = len(submitted) * len(of)

    def note(key: str, result: Result) -> None:
        for name, number in whose[key]:
            results[name, number] = result
            say(f"{len(results)}/{total}  {plain(name)}  {number}: {result.points} of {result.of}")

    with Grades(store, note) as grades:
        for key in files.keys() & grades.lines.keys():
            results |= dict.fromkeys(whose[key], result_of(grades[key]["result"]))
        if results:
            say(f"{len(results)} of {total} need no judging: no file, or judged before")
        before = len(results)
        try:
            todo = [file for key, file in files.items() if key not in grades]
            _judge_all(todo, grades, jobs, executor)
        except KeyboardInterrupt:
            count = f"{len(results) - before} of {total - before} files were judged"
            kept = "their results were kept: run the same command to continue"
            raise KeyboardInterrupt(
                f"interrupted: {count}, and {kept if store is not None else 'nothing was kept'}"
            ) from None
    return Class(
        seed, tuple(Task(one.number, one.title, one.points) for one in of),
        tuple(Pupil(name, tuple(results[name, one.number] for one in of)) for name in submitted),
        tuple(left_out),
    )


def _judge_all(files: Sequence[File], grades: Journal, jobs: int, executor: Pool | None) -> None:
    """Judge these files. Nothing stays behind."""
    if executor is not None:
        do(files, grades, judged, executor, lost=_lost)
    elif files:
        try:
            place = tempfile.TemporaryDirectory(prefix="minilora-", ignore_cleanup_errors=True)
        except OSError as error:
            raise fault(f"a temporary folder cannot be made: {error}") from error
        with place as within, contextlib.closing(_Judges(within)) as judges:
            here = Pool(lambda: ThreadPoolExecutor(jobs), jobs, stop=judges.close)
            before = threads()
            try:
                do(files, grades, judges, here)
            finally:
                threads(before)  # each of the pool's threads changed it


def _lost(job: Job) -> dict[str, Any]:
    words = "it could not be judged: the process of its judge ended twice"
    return asdict(nothing(exercise(job.config["number"]), UNJUDGED, words))


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


class _Judges:
    """The judges of one process: one for each thread, for the seed and the limits that it needs.

    within: a folder for their files; None: the system's.
    """

    def __init__(self, within: str | None = None) -> None:
        self._own, self._all, self._closed = threading.local(), list[_Judge](), False
        self._within = within

    def __call__(self, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the result of one file."""
        asked = config["seed"], config["limits"]
        if getattr(self._own, "asked", None) != asked:
            within = self._within or tempfile.gettempdir()
            self._own.judge = _Judge(config["seed"], Limits(**config["limits"]), within)
            self._own.asked = asked
            self._all.append(self._own.judge)
        if self._closed:
            raise KeyboardInterrupt
        judge: _Judge = self._own.judge
        return asdict(judge.result(exercise(config["number"]), config["source"]))

    def close(self) -> None:
        """End all judges; what they judge is not finished."""
        self._closed = True
        for one in self._all:
            one.close()


_judges = _Judges()  # of a worker of an executor; they end with it


def judged(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the result of one file, in a worker of an executor.

    Raises RuntimeError if the worker has other versions, or another text of the exercise, than the
    driver.
    """
    here = versions(exercise(config["number"]))
    if here != config["versions"]:
        raise RuntimeError(
            f"a worker has other exercises, or another Python or NumPy ({here}), than the driver "
            f"({config['versions']}): install the same there")
    return _judges(kind, config)


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
