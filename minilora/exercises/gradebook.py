"""A class's results as files for other programs: CSV, JSON, and Gradescope's results.json."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from . import report
from .results import Class, Part
from .submissions import plain


def table(of: Class) -> bytes:
    """Return CSV: a row for each student, with the points of each exercise and their sum.

    The mark at its start tells a spreadsheet that it is UTF-8. A name that a spreadsheet could read
    as a formula gets a ' in front.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["student", *(task.number for task in of.tasks), "points", "of"])
    for pupil in of.pupils:
        name = plain(pupil.name)
        first = unicodedata.normalize("NFKC", pupil.name).lstrip()[:1]  # a wide = is one too
        name = f"'{name}" if first and first in "=+-@|%" else name
        out.writerow([name, *(one.points for one in pupil.results), pupil.points, of.of])
    return text.getvalue().encode("utf-8-sig")


def as_json(of: Class) -> bytes:
    """Return all results as JSON."""
    data = asdict(of)
    for pupil, entry in zip(of.pupils, data["pupils"]):
        entry |= {"name": plain(pupil.name), "points": pupil.points}
        for result, one in zip(pupil.results, entry["results"]):
            one["state"] = result.state
    return (json.dumps(data, indent=1) + "\n").encode()


def gradescope(of: Class) -> bytes:
    """Return Gradescope's results.json for one student: a test for each check, with its message.

    The fields are those of gradescope-autograders.readthedocs.io/en/latest/specs, "output format".
    extra_data has a digest of the rest: so `written` knows the file again, with no other file.
    Raises ValueError for several students: Gradescope runs once for each student.
    """
    if len(of.pupils) != 1:
        raise ValueError(
            f"Gradescope takes one student at a time, not {len(of.pupils)}: give the folder of one "
            "student"
        )
    (pupil,) = of.pupils
    tests = [
        {"name": f"{task.title}: {part.title}", "number": f"{task.number}.{i}",
         "score": part.points, "max_score": part.of,
         "status": "passed" if part.points == part.of else "failed",
         "output": _message(part, result.mistakes), "output_format": "text",
         "visibility": "visible"}
        for task, result in zip(of.tasks, pupil.results)
        for i, part in enumerate(result.parts, 1)
    ]
    data = {"score": pupil.points, "output": f"{pupil.points} of {of.of} points",
            "output_format": "text", "visibility": "visible", "tests": tests}
    return _signed(data)


def written(content: bytes) -> bool:
    """Is this a results.json as `gradescope` writes it, not changed since?"""
    try:
        data = json.loads(content)
        del data["extra_data"]
        return _signed(data) == content
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _signed(data: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:32]
    return (json.dumps({**data, "extra_data": {"minilora": digest}}, indent=1) + "\n").encode()


def _message(part: Part, mistakes: tuple[str, ...]) -> str:
    if part.points == part.of:
        return "right"
    why = [report.why(mistakes)] if mistakes and not part.kind else []
    return "\n".join([*part.lines, *why])
