"""A student's folder: the files of the exercises, and the progress."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..files import atomic, text
from .book import OWN, Exercise, exercise, paths
from .submissions import source

PROGRESS = ".minilora-exercises.json"
FOLDER = "exercises"  # the default name


@dataclass(frozen=True)
class Progress:
    """The progress in one exercise."""

    points: int = 0  # the best result so far
    passed: bool = False  # at least once
    hints: int = 0  # how many were shown
    given_up: bool = False  # the solution was shown before a pass
    now: int = 0  # points of the last check
    checked: str = ""  # a digest of what was checked then


@dataclass(frozen=True)
class Desk:
    """A student's folder."""

    folder: Path
    course: tuple[str, ...]  # the numbers of the exercises, in order
    seed: int  # of stubs that differ between students
    progress: dict[str, Progress]  # by number

    def exercise(self, number: str) -> Exercise:
        """Return an exercise of the course. Raises ValueError for any other."""
        of = exercise(number)
        if of.number not in self.course:
            raise ValueError(
                f"exercise {of.number} is not in this course: choose one of "
                f"{', '.join(self.course)}"
            )
        return of

    def exercises(self) -> tuple[Exercise, ...]:
        """Return the exercises of the course, in order."""
        return tuple(exercise(number) for number in self.course)

    def file(self, of: Exercise) -> Path:
        return self.folder / of.name

    def source(self, of: Exercise) -> str:
        """Return the text of the student's file. Raises ValueError if it cannot be read."""
        try:
            return source(self.file(of))
        except ValueError as error:
            reset = f"to write its stub again: minilora ex reset {of.number}"
            raise ValueError(f"{error}; {reset}") from error

    def begun(self, of: Exercise) -> bool:
        """Is the student's file another one than the stub?"""
        return self.source(of) != of.stub(self.seed)

    def digest(self, of: Exercise) -> str:
        """Return a digest of the student's file and the exercise; "" for a file without text."""
        try:
            both = self.source(of), source(of.path)
        except ValueError:
            return ""
        return hashlib.sha256("\0".join(both).encode()).hexdigest()[:16]

    def of(self, number: str) -> Progress:
        return self.progress.get(number, Progress())

    def update(self, number: str, change: Callable[[Progress], Progress]) -> Progress:
        """Change the progress in one exercise, as it is in the file now. Return the new one.

        Another command may write the file at the same time: no change is lost.
        """
        with _alone(self.folder):
            desk = _read(self.folder) if (self.folder / PROGRESS).exists() else self
            done = change(desk.of(number))
            _saved(replace(desk, progress={**desk.progress, number: done}))
        return done

    def reset(self, of: Exercise) -> Path | None:
        """Write the stub again. Return the copy of the old file, or None if that was the stub."""
        file, stub = self.file(of), of.stub(self.seed).encode()
        before = file.read_bytes() if file.is_file() else stub
        with _alone(self.folder):
            number = 1
            while (aside := file.with_name(f"{file.name}.{number}")).exists():
                number += 1
            if before != stub:
                with atomic.writing(aside) as out:
                    out.write(before)
            with atomic.writing(file) as out:
                out.write(stub)
        return aside if before != stub else None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other command changes this folder. Without locks (Windows): do not wait."""
    with contextlib.ExitStack() as opened:
        if atomic.fcntl is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                place = os.open(folder, os.O_RDONLY)
                opened.callback(os.close, place)
                atomic.fcntl.flock(place, atomic.fcntl.LOCK_EX)
        yield


def begin(folder: Path, seed: int, only: Sequence[str] | None = None) -> tuple[Desk, list[Path]]:
    """Write the stub of each exercise of the course into a folder. Existing files are not changed.

    only: the numbers of a course, in order; None: the folder's course, or all exercises.
    Returns the desk and the new files.
    """
    course = tuple(dict.fromkeys(exercise(number).number for number in only or paths()))
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if (folder / PROGRESS).exists():
            desk = _read(folder)
            desk = replace(desk, course=course) if only else desk
        else:
            desk = Desk(folder, course, seed, {})
        new = [of for of in desk.exercises() if not desk.file(of).exists()]
        for of in new:
            with atomic.writing(desk.file(of)) as out:
                out.write(of.stub(desk.seed).encode())
        return _saved(desk), [desk.file(of) for of in new]


def find(start: Path) -> Desk:
    """Return the desk of this folder, of `exercises` in it, or of a folder above it.

    Raises ValueError if there is none.
    """
    start = start.resolve()
    for folder in (start, start / FOLDER, *start.parents):
        if (folder / PROGRESS).exists():
            return _read(folder)
    raise ValueError(f"there are no exercises in {start}: to start, run minilora ex init")


def _read(folder: Path) -> Desk:
    file = folder / PROGRESS
    try:
        data = _typed(json.loads(text.read(file)), dict, "the file")
        course = _typed(data.get("course"), list, "course")
        progress = {
            number: _progress(number, _typed(entry, dict, number))
            for number, entry in _typed(data.get("progress"), dict, "progress").items()
        }
        course = tuple(_typed(number, str, "course") for number in course)
        if not all(re.fullmatch(r"\d\d", number) for number in course) or not course:
            raise ValueError(f"course is {course}, not numbers such as 07")
        desk = Desk(folder, course, _typed(data.get("seed"), int, "seed"), progress)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it, then run minilora ex init; your exercises "
            "stay as they are, and the progress starts again"
        ) from error
    known = paths()
    if lacking := [number for number in course if number not in known]:
        raise ValueError(
            f"the course in {folder} has {', '.join(lacking)}, which this minilora does not have: "
            f"set {OWN} to the folder with ex{lacking[0]}_....py, as your teacher says"
        )
    return desk


def _typed(value: Any, kind: type, name: str) -> Any:
    """Return a value of the file. Raises ValueError for another type, or a number below 0."""
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"{name} is {value!r:.40}, not {kind.__name__}")
    return value


def _progress(number: str, entry: Mapping[str, Any]) -> Progress:
    fields = asdict(Progress())
    if unknown := entry.keys() - fields.keys():
        raise ValueError(f"{number} has an unknown {min(unknown)}")
    return Progress(**{
        name: _typed(value, type(fields[name]), f"{name} of {number}")
        for name, value in entry.items()
    })


def _saved(desk: Desk) -> Desk:
    progress = {number: asdict(done) for number, done in sorted(desk.progress.items())}
    data = {"course": desk.course, "seed": desk.seed, "progress": progress}
    with atomic.writing(desk.folder / PROGRESS) as out:
        out.write(json.dumps(data, indent=1).encode())
    return desk


def changes(desk: Desk, pause: float = 0.5) -> Iterator[Exercise]:
    """Yield each exercise whose file changes, without end."""

    def stamp(of: Exercise) -> tuple[float, int]:
        try:
            stat = os.stat(desk.file(of))
        except OSError:
            return 0.0, 0
        return stat.st_mtime, stat.st_size

    before = {of.number: stamp(of) for of in desk.exercises()}
    while True:
        time.sleep(pause)
        for of in desk.exercises():
            now = stamp(of)
            if now != before[of.number]:
                before[of.number] = now
                if now != (0.0, 0):  # an editor may remove a file before it writes the new one
                    yield of
