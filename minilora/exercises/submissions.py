"""Submitted files: whose they are, for which exercise, and their text.

A student is, in this order:

1. the whole folder, if there are files exNN_name.py in it, or if it is said to be one student;
2. a folder in it: its files exNN_anything.py count. If it has no .py file and one folder, those
   in that folder count;
3. a file in it: STUDENT-exNN_anything.py. Where one exercise is graded and there is no folder of a
   student, also STUDENT.py.

What could be read in two ways is an error that lists it. `minilora ex grade FOLDER --list` shows
the students and their files, and judges nothing.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import text
from .book import Exercise

MOST = 1 << 20  # bytes of a submitted file
PLACE = re.compile(r"(/\S*)?minilora-\w{8}/?")  # the temporary folder, whose name is random
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
OURS = re.compile(r"ex(\d\d)(?!\d)")  # the start of the name of a file without a student's name
THEIRS = re.compile(r"(.+?)[-_ ]+ex(\d\d)(?!\d)")  # "Alex01-ex02_a": Alex01, 02
Files = dict[str, Path | str]  # number -> the file, or a sentence that says why there is none


def submissions(
    folder: Path, of: Sequence[Exercise], alone: bool = False
) -> tuple[dict[str, Files], list[str]]:
    """Return each student's files by exercise, in the order of names, and the names left out.

    alone: the folder is one student, whatever is in it. Raises ValueError for what is no folder, a
    folder without a student, or names that could be read in two ways.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds the submissions")
    entries = _sorted(folder)
    folders = [path for path in entries if path.is_dir() and not path.is_symlink()]
    files = [path for path in entries if path.suffix == ".py" and path not in folders]
    unnamed = [path for path in files if OURS.match(path.name)]
    numbered = [path for path in folders if OURS.match(path.name)]
    pupils = [path for path in folders if _is_pupil(path)]
    if alone or (unnamed and not pupils):
        return {folder.resolve().name: _files(folder, of)}, []
    _refuse(unnamed, f"{'is' if not unnamed[1:] else 'are'} beside folders, and no student's name "
                     "is in it: name a file STUDENT-ex02_name.py, or grade one student's folder")
    _refuse(numbered, "begins like an exercise's file: name a folder as its student")
    lone = [path for path in files if not THEIRS.match(path.name)]
    if len(of) == 1 and pupils:
        _refuse(lone, "is beside folders, and no number of an exercise is in it: name it "
                      f"STUDENT-ex{of[0].number}.py, or move it away")
    students: dict[str, list[tuple[Path, Files]]] = {}
    for path in pupils:
        students.setdefault(path.name, []).append((path, _files(path, of)))
    for path in files:
        match = THEIRS.match(path.name)
        name, number = (match[1], match[2]) if match else (path.stem, of[0].number)
        if (match and any(one.number == number for one in of)) or (path in lone and len(of) == 1):
            students.setdefault(name, []).append((path, {number: path}))
    used = {path for those in students.values() for path, _ in those}
    left_out = [plain(path.name) for path in entries if path not in used]
    if not students:
        raise ValueError(
            f"{folder} contains no submission: put a folder or a .py file for each student into it"
        )
    merged = {name: _merged(those) for name, those in students.items()}
    _refuse_alike(students)
    return dict(sorted(merged.items(), key=lambda item: os.fsencode(item[0]))), left_out


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))


def _is_pupil(folder: Path) -> bool:
    """Is this folder a student? A hidden one is, if it has a file of an exercise."""
    if not folder.name.startswith((".", "__")):
        return True
    return folder.name != "__MACOSX" and any(_number(path) for path in _below(folder))


def _refuse(paths: Sequence[Path], why: str) -> None:
    if paths:
        names = ", ".join(plain(path.name) for path in paths)
        raise ValueError(f"whose is this? {names} {why}")


def _refuse_alike(students: Iterable[str]) -> None:
    """Refuse names that differ in capitals or in how accents are written: they look the same."""
    alike: dict[str, list[str]] = {}
    for name in students:
        alike.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(name)
    for names in alike.values():
        if names[1:]:
            listed = ", ".join(f"{plain(name)!r}" for name in names)
            raise ValueError(f"is this one student? {listed}: give them one name, or other ones")


def _merged(parts: Sequence[tuple[Path, Files]]) -> Files:
    """The files of one student. Raises ValueError if two are for the same exercise."""
    merged: Files = {}
    for path, files in parts:
        for number, file in files.items():
            if isinstance(file, str) and len(parts) > 1 and not path.suffix:
                continue
            if number in merged:
                names = " and ".join(plain(one.name) for one, _ in parts)
                raise ValueError(
                    f"which one counts? {names} have a file for exercise {number}: keep one"
                )
            merged[number] = file
    return merged


def _number(path: Path) -> str:
    """The number of the exercise in a file's name; "" if there is none."""
    match = OURS.match(path.name) or THEIRS.match(path.name)
    return match[match.re.groups] if match and path.suffix == ".py" else ""


def _below(folder: Path) -> list[Path]:
    """The paths in a folder; of its only folder, if it has one and no .py file."""
    try:
        inside = _sorted(folder)
        deeper = [path for path in inside if path.is_dir() and not path.is_symlink()
                  and not path.name.startswith((".", "__"))]
        if len(deeper) == 1 and not any(path.suffix == ".py" for path in inside):
            return _below(deeper[0])
    except (OSError, RecursionError):
        return []
    return inside


def _files(folder: Path, of: Sequence[Exercise]) -> Files:
    """For each exercise the file with the stub's name, or the only one, or why there is none."""
    inside = _below(folder)
    others = [path.name for path in inside if not path.name.startswith((".", "__"))]
    seen = f": what is there is {', '.join(map(plain, others[:5]))}" if others else ": it is empty"
    files: Files = {}
    for one in of:
        fit = [path for path in inside if _number(path) == one.number]
        usual = [path for path in fit if path.name == one.name]
        if fit[1:] and not usual:
            names = ", ".join(plain(path.name) for path in fit)
            files[one.number] = f"there are {len(fit)} files for this exercise: {names}; keep one"
        elif fit:
            files[one.number] = (usual or fit)[0]
        else:
            files[one.number] = f"the submission has no file {one.name}{seen}"
    return files


def read(file: Path | str) -> tuple[str, tuple[str, str] | None]:
    """Return a file's text, or the kind and message of a problem."""
    if isinstance(file, str):
        return "", ("absent", file)
    if file.is_symlink():  # it could lead to a file of somebody else
        return "", ("unreadable", "the file is a symbolic link")
    try:
        return source(file, "the file"), None
    except ValueError as error:
        return "", ("unreadable", str(error))


def source(path: Path, name: str = "") -> str:
    """Return the text of a student's file. Raises ValueError if it cannot be read."""
    name = name or str(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{name} is not a regular file")
    return text.read(path, MOST, name)


def plain(words: str) -> str:
    """Return printable text that is the same in each run: without addresses and random names."""
    words = ADDRESS.sub("0x...", PLACE.sub("", words))
    words = words.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in words)[:400]
