"""A student's folder: the files to write in, and how far they are."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..files import atomic
from .book import Exercise, exercise, paths

KEPT = ".minilora-exercises.json"
USUAL = "exercises"


@dataclass(frozen=True)
class Progress:
    """How far one exercise is."""

    points: int = 0  # the most of any check
    passed: bool = False  # once, whatever was changed since
    hints: int = 0  # seen
    given_up: bool = False  # the solution was shown before a pass


@dataclass(frozen=True)
class Desk:
    """The folder, the course's numbers in order, the seed of what is drawn, and the progress."""

    folder: Path
    course: tuple[str, ...]
    seed: int
    progress: dict[str, Progress]

    def exercise(self, number: str) -> Exercise:
        """One of the course. Raises ValueError for another."""
        found = exercise(number)
        if found.number not in self.course:
            there = ", ".join(self.course)
            raise ValueError(f"exercise {found.number} is not of this course: there are {there}")
        return found

    def exercises(self) -> tuple[Exercise, ...]:
        """All of the course, in its order."""
        return tuple(exercise(number) for number in self.course)

    def file(self, of: Exercise) -> Path:
        return self.folder / of.name

    def source(self, of: Exercise) -> str:
        """What the student wrote. Raises ValueError where the file is missing or not readable."""
        file = self.file(of)
        reset = f"minilora ex reset {of.number} writes its stub again"
        try:
            return file.read_text("utf-8")
        except FileNotFoundError:
            raise ValueError(f"{file} is not there: {reset}") from None
        except UnicodeDecodeError:
            raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8, or {reset}") from None
        except OSError as error:
            raise ValueError(f"{file} cannot be read ({atomic.said(error)}): {reset}") from error

    def of(self, number: str) -> Progress:
        return self.progress.get(number, Progress())

    def noted(self, number: str, **changes: int | bool) -> Desk:
        """With this progress, kept."""
        progress = {**self.progress, number: replace(self.of(number), **changes)}  # type: ignore[arg-type]
        return _kept(replace(self, progress=progress))

    def reset(self, of: Exercise) -> Path | None:
        """Write the stub again; where what was there goes, or None if nothing is lost."""
        file, stub = self.file(of), of.stub(self.seed).encode()
        before = file.read_bytes() if file.is_file() else stub
        number = 1
        while (aside := file.with_name(f"{file.name}.{number}")).exists():
            number += 1
        if before != stub:
            with atomic.writing(aside) as out:
                out.write(before)
        with atomic.writing(file) as out:
            out.write(stub)
        return aside if before != stub else None


def begin(folder: Path, seed: int, only: Sequence[str] | None = None) -> tuple[Desk, list[Path]]:
    """A folder with a stub for each exercise of the course; those that are there stay as they are.

    only: the numbers of a course, in order; None: all, or what the folder's course was before.
    Returns the desk and the files that are new.
    """
    course = tuple(exercise(number).number for number in only or paths())
    if (folder / KEPT).exists():
        desk = _read(folder)
        desk = replace(desk, course=course) if only else desk
    else:
        folder.mkdir(parents=True, exist_ok=True)
        desk = Desk(folder, course, seed, {})
    new = [found for found in desk.exercises() if not desk.file(found).exists()]
    for found in new:
        with atomic.writing(desk.file(found)) as out:
            out.write(found.stub(desk.seed).encode())
    return _kept(desk), [desk.file(found) for found in new]


def find(start: Path) -> Desk:
    """The desk that is this folder, or in it, or around it. Raises ValueError where none is."""
    start = start.resolve()
    for folder in (start, start / USUAL, *start.parents):
        if (folder / KEPT).exists():
            return _read(folder)
    raise ValueError(f"there are no exercises in {start}: minilora ex init begins")


def _read(folder: Path) -> Desk:
    file = folder / KEPT
    try:
        held = json.loads(file.read_text("utf-8"))
        progress = {number: Progress(**kept) for number, kept in held["progress"].items()}
        desk = Desk(folder, tuple(held["course"]), int(held["seed"]), progress)
        desk.exercises()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged ({error}): delete it, then minilora ex init keeps your files and "
            "notes progress anew"
        ) from error
    return desk


def _kept(desk: Desk) -> Desk:
    progress = {number: asdict(done) for number, done in sorted(desk.progress.items())}
    held = {"course": desk.course, "seed": desk.seed, "progress": progress}
    with atomic.writing(desk.folder / KEPT) as out:
        out.write(json.dumps(held, indent=1).encode())
    return desk


def changes(desk: Desk, pause: float = 0.5) -> Iterator[Exercise]:
    """The exercises whose files change, as they do, for ever."""

    def stamp(of: Exercise) -> tuple[float, int]:
        try:
            found = os.stat(desk.file(of))
        except OSError:
            return 0.0, 0
        return found.st_mtime, found.st_size

    before = {of.number: stamp(of) for of in desk.exercises()}
    while True:
        time.sleep(pause)
        for of in desk.exercises():
            now = stamp(of)
            if now != before[of.number]:
                before[of.number] = now
                if now != (0.0, 0):  # an editor puts a new file in the old one's place
                    yield of
