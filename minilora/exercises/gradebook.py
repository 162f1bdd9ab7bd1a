"""A class's results as files for other programs: a table, JSON, and Gradescope's results.json."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict

from . import report as telling
from .grading import Class, Part
from .submissions import plain


def table(of: Class) -> bytes:
    """CSV: a student a row, the points of each exercise, their sum.

    A name that a spreadsheet would take for a formula has a ' before it.
    """
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["student", *(task.number for task in of.tasks), "points", "of"])
    for pupil in of.pupils:
        name = plain(pupil.name)
        name = f"'{name}" if name.startswith(("=", "+", "-", "@")) else name
        out.writerow([name, *(one.points for one in pupil.results), pupil.points, of.of])
    return text.getvalue().encode()


def as_json(of: Class) -> bytes:
    """All that there is, as JSON."""
    held = asdict(of)
    for pupil, told in zip(of.pupils, held["pupils"]):
        told |= {"name": plain(pupil.name), "points": pupil.points}
        for result, one in zip(pupil.results, told["results"]):
            one["state"] = result.state
    return (json.dumps(held, indent=1) + "\n").encode()


def gradescope(of: Class) -> bytes:
    """Gradescope's results.json of one student: a test for each check, its message as plain text.

    Raises ValueError where there are more: Gradescope runs once for each student.
    """
    if len(of.pupils) != 1:
        raise ValueError(
            f"Gradescope takes one student at a time, and here are {len(of.pupils)}: give the "
            "folder of one"
        )
    (pupil,) = of.pupils
    tests = [
        {"name": f"{task.title}: {part.title}", "number": f"{task.number}.{i}",
         "score": part.points, "max_score": part.of,
         "status": "passed" if part.points == part.of else "failed",
         "output": _told(part, result.mistakes), "output_format": "text",
         "visibility": "visible"}
        for task, result in zip(of.tasks, pupil.results)
        for i, part in enumerate(result.parts, 1)
    ]
    held = {"score": pupil.points, "output": f"{pupil.points} of {of.of} points",
            "output_format": "text", "visibility": "visible", "tests": tests}
    return (json.dumps(held, indent=1) + "\n").encode()


def _told(part: Part, mistakes: tuple[str, ...]) -> str:
    if part.points == part.of:
        return "right"
    why = [telling.why(mistakes)] if mistakes and not part.kind else []
    return "\n".join([*part.lines, *why])
