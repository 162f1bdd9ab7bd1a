"""Submitted files: whose they are, for which exercise, and their text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import text
from .book import Exercise

MOST = 1 << 20  # bytes of a submitted file
PLACE = re.compile(r"(/\S*)?minilora-\w{8}/?")  # the temporary folder, whose name is random
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def submissions(
    folder: Path, of: Sequence[Exercise]
) -> tuple[dict[str, dict[str, Path | None]], list[str]]:
    """Return each student's files by exercise, in the order of names, and the names left out.

    A file is None if a student has several for one exercise: no guess is made.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds the submissions")
    entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    if any(re.match(r"ex\d\d", path.name) for path in entries):
        return {folder.resolve().name: _files(entries, of)}, []
    students: dict[str, dict[str, Path | None]] = {}
    left_out = []
    for path in entries:
        files: dict[str, Path | None]
        name, number = path.name, _number(path.name, of)
        candidate = path.suffix == ".py" or (path.is_dir() and not path.is_symlink())
        if name.startswith((".", "__MACOSX")) or not candidate:
            left_out.append(plain(name))
            continue
        if path.suffix != ".py":
            inside = _listed(path)
            files = _files(inside or [], of)
        elif number or len(of) == 1:
            name = re.split(r"[-_ ]*ex\d\d", path.stem)[0] or path.stem
            files = {number or of[0].number: path}
        else:
            left_out.append(plain(name))
            continue
        own = students.setdefault(name, {})
        for number, file in files.items():
            own[number] = None if number in own else file
    if not students:
        raise ValueError(
            f"{folder} contains no submission: put a folder or a .py file for each student into it"
        )
    return students, left_out


def _number(name: str, of: Sequence[Exercise]) -> str:
    """The number of the exercise in a file's name; "" if there is none."""
    match = re.search(r"(?:^|[-_ ])ex(\d\d)", name)
    return match[1] if match and any(one.number == match[1] for one in of) else ""


def _listed(folder: Path) -> list[Path] | None:
    """The paths in a folder; of its only subfolder, if it has one and no .py file."""
    try:
        inside = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        deeper = [path for path in inside if path.is_dir() and not path.is_symlink()]
        if len(deeper) == 1 and not any(path.suffix == ".py" for path in inside):
            return _listed(deeper[0])
    except (OSError, RecursionError):
        return None
    return inside


def _files(inside: Iterable[Path], of: Sequence[Exercise]) -> dict[str, Path | None]:
    """The file for each exercise: the one with the stub's name, or the only one."""
    files: dict[str, Path | None] = {}
    for path in inside:
        number = _number(path.name, of) if path.suffix == ".py" else ""
        if number:
            usual = next(one.name for one in of if one.number == number)
            before = files.get(number)
            if number not in files or path.name == usual:
                files[number] = path
            elif before is None or before.name != usual:
                files[number] = None
    return files


def read(path: Path | None) -> tuple[str, tuple[str, str] | None]:
    """Return a file's text, or the kind and message of a problem."""
    if path is None:
        return "", ("absent", "there is no file for this exercise, or more than one")
    if path.is_symlink():  # it could lead to a file of somebody else
        return "", ("unreadable", "the file is a symbolic link")
    try:
        return source(path, "the file"), None
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
