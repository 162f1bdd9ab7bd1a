"""`minilora ex grade`: the points of a class, and files with them for people and programs."""

from __future__ import annotations

import argparse
import hashlib
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..files import atomic
from ..jobs import executors
from . import inputs
from .parser import Parser, Say, integer, some_names, to_write

CACHE = ".minilora-grades"  # a folder beside the results: an interrupted grading continues from it


def add_to(to: Parser) -> None:
    sub = to.command("grade", grade, conflict_handler="resolve")  # it has a --json of its own
    sub.argument("folder", "the folder of submissions", needs="a folder: ex grade SUBMISSIONS")
    sub.option("--only", read=some_names, help="only these exercises, separated by commas (all)")
    help = "judge in the processes of another executor, on other machines too"
    sub.option("--executor", read=inputs.executor, help=f"{help}: {', '.join(executors.NAMES)}")
    sub.option("--jobs", read=integer(1, 1024), help="number of judges at a time (1; with "
               "--executor one for each core)")
    sub.option("--csv", read=to_write(".csv"), help="write the points to this .csv")
    sub.option("--html", read=to_write(".html"), help="write a page about the class to this file")
    sub.option("--gradescope", read=to_write(".json"), help="write a .json for Gradescope")
    sub.flag("--list", help="show whose files would be judged, and judge nothing")
    sub.flag("--force", help="replace files that ex grade did not write so")
    sub.add_argument(
        "--json", nargs="?", const=True, type=to_write(".json"), default=argparse.SUPPRESS,
        help="write all results to this .json; without a name: print the points as JSON",
    )


def grade(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Grade a folder of submissions."""
    from ..exercises import classpage, gradebook, grading, submissions

    if args.list:
        return _listed(args, say)
    asked = (
        (args.csv, gradebook.table), (args.json, gradebook.as_json),
        (args.gradescope, gradebook.gradescope), (args.html, classpage.page),
    )
    formats = {file: bytes_of for file, bytes_of in asked if isinstance(file, Path)}
    if len({*map(os.path.realpath, formats)}) < sum(isinstance(file, Path) for file, _ in asked):
        raise ValueError(
            f"--json and --gradescope both write {args.gradescope}: give each another name"
        )
    for file in formats:
        ours = args.force or _ours(file, file == args.gradescope)
        inputs.check_new(file, ours, "give another name, or --force")
    beside = [file for file in formats if file != args.gradescope]  # nothing beside that one
    store = None if formats and not beside else next(iter(beside), Path(CACHE)).parent / CACHE
    where = executors.pool(args.executor, args.jobs) if args.executor else nullcontext()
    with where as pool:
        grades = grading.grade(
            args.folder, args.seed, args.jobs or 1, say, only=args.only, store=store,
            alone=args.gradescope is not None, executor=pool,
        )
    names = ", ".join(map(submissions.plain, grades.unjudged))
    words = f"these could not be judged, and their 0 points mean nothing: {names}: grade again"
    for file, bytes_of in formats.items():
        if file == args.gradescope and grades.unjudged:
            continue  # a program would take the 0 points for a result
        with atomic.writing(file) as out:
            out.write(bytes_of(grades))
        if file != args.gradescope:
            (file.parent / CACHE).mkdir(exist_ok=True)
            _written(file).touch()
        say(str(file))
    if not formats:
        say(gradebook.table(grades).decode("utf-8-sig").rstrip())
    points = {pupil.name: pupil.points for pupil in grades.pupils}
    result = {"points": points, "files": [str(file) for file in formats]}
    return {**result, "passed": False, "failed": words} if grades.unjudged else result


def _listed(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Show whose files would be judged, and judge nothing."""
    from ..exercises import grading, submissions

    of, place = grading.chosen(args.only), Path(args.folder)
    students, left_out = submissions.submissions(place, of, args.gradescope is not None)
    found: dict[str, dict[str, str]] = {}
    for name, files in students.items():
        found[name] = {}
        say(submissions.plain(name))
        for one in of:
            file = files.get(one.number, grading.ABSENT)
            known = isinstance(file, Path)
            if known:
                found[name][one.number] = str(file)
            words = submissions.plain(os.path.relpath(file, place)) if known else file
            say(f"  {one.number}  {words}" if known or len(of) == 1 else f"  {one.number}  none")
    if left_out:
        say(f"no submissions: {', '.join(left_out)}")
    say(f"{len(students)} student{'s' * (len(students) != 1)}; nothing was judged")
    return {"students": found, "left_out": left_out}


def _ours(file: Path, gradescope: bool) -> bool:
    """Did ex grade write this file, with its present content?"""
    from ..exercises import gradebook

    if gradescope:
        return file.is_file() and gradebook.written(file.read_bytes())
    return _written(file).exists()


def _written(file: Path) -> Path:
    """Where ex grade notes that it wrote a file with the present content of this one.

    Such a file can be written again; another, or one that was edited, is the user's.
    """
    digest = hashlib.sha256(file.read_bytes() if file.exists() else b"").hexdigest()
    return file.parent / CACHE / f"{digest[:32]}.written"
