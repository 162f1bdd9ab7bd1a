"""What was handed in: whose it is, for which exercise, and its text or why there is none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files import atomic
from .book import Exercise

MOST = 1 << 20  # bytes of a submitted file
PLACE = re.compile(r"(/\S*)?minilora-\w{8}/?")  # the student's folder, whose name is drawn
ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")


def submissions(
    folder: Path, of: Sequence[Exercise]
) -> tuple[dict[str, dict[str, Path | None]], list[str]]:
    """Each student's files by exercise, in order of names, and what is left out.

    A file is None where there are several for one exercise: nobody guesses which is meant.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one that holds the submissions")
    entries = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
    if any(re.match(r"ex\d\d", path.name) for path in entries):
        return {folder.resolve().name: _files(entries, of)}, []
    found: dict[str, dict[str, Path | None]] = {}
    left_out = []
    for path in entries:
        files: dict[str, Path | None]
        name, number = path.name, _number(path.name, of)
        whole = path.suffix == ".py" or (path.is_dir() and not path.is_symlink())
        if name.startswith((".", "__MACOSX")) or not whole:
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
        there = found.setdefault(name, {})
        for number, file in files.items():
            there[number] = None if number in there else file
    if not found:
        raise ValueError(f"{folder} holds no submission: a folder or a .py file for each student")
    return found, left_out


def _number(name: str, of: Sequence[Exercise]) -> str:
    """The exercise that a file's name tells of."""
    told = re.search(r"(?:^|[-_ ])ex(\d\d)", name)
    return told[1] if told and any(one.number == told[1] for one in of) else ""


def _listed(folder: Path) -> list[Path] | None:
    """What lies in a folder, and one level deeper where that is a single folder."""
    try:
        inside = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        deeper = [path for path in inside if path.is_dir() and not path.is_symlink()]
        if len(deeper) == 1 and not any(path.suffix == ".py" for path in inside):
            return _listed(deeper[0])
    except (OSError, RecursionError):
        return None
    return inside


def _files(inside: Iterable[Path], of: Sequence[Exercise]) -> dict[str, Path | None]:
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
    """A file's text; or the kind and words of why there is none."""
    if path is None:
        return "", ("absent", "there is no file for it, or more than one")
    if path.is_symlink():
        return "", ("unreadable", "the file is a link")
    try:
        if not path.is_file():
            return "", ("unreadable", "it is no file")
        with path.open("rb") as file:
            data = file.read(MOST + 1)
        if len(data) > MOST:
            return "", ("unreadable", f"the file is larger than {MOST >> 20} MiB")
        return data.decode("utf-8-sig").replace("\r\n", "\n"), None
    except UnicodeDecodeError:
        return "", ("unreadable", "the file is not UTF-8 text")
    except OSError as error:
        return "", ("unreadable", f"the file cannot be read: {atomic.said(error)}")


def plain(text: str) -> str:
    """Text that says the same in each run, and that a terminal and a file can take."""
    text = ADDRESS.sub("0x...", PLACE.sub("", text))
    whole = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else "?" for letter in whole)[:400]
