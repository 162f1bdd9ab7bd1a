"""`minilora ex`: a student's exercises, and a teacher's."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import atomic

KEPT = ".minilora-grades"  # beside what a grading writes: what is done goes on from there
Say = Callable[[str], None]
STUDENT = ("init", "status", "check", "watch", "hint", "solution", "reset", "milestone")
TEACHER = ("grade", "teach", "dev")
DOES = (*STUDENT, *TEACHER)
DEV = ("check", "messages", "new")
TAKES = {  # what goes with which of them
    "which": ("init", "check", "hint", "solution", "reset", "milestone", "grade", "dev"),
    "more": ("dev",), "give_up": ("solution",), "verbose": ("check", "watch"),
    "only": ("init", "grade"), "jobs": ("grade",), "csv": ("grade",), "html": ("grade",),
    "gradescope": ("grade",),
}
NEEDS = {
    "check": "an exercise: ex check 01", "hint": "an exercise: ex hint 01",
    "solution": "an exercise: ex solution 01", "reset": "an exercise: ex reset 01",
    "milestone": "one of 05, 08, 10: ex milestone 05", "grade": "a folder: ex grade SUBMISSIONS",
    "dev": f"one of {', '.join(DEV)}: ex dev check",
}


def exercises(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Exercises: init, status, check 01, watch, hint 01, solution 01; grade, teach, dev."""
    for name, where in TAKES.items():
        given = getattr(args, name)
        if given and args.do not in where:
            odd = f"{given!r}" if name in ("which", "more") else f"--{name.replace('_', '-')}"
            raise ValueError(f"ex {args.do} takes no {odd}: see `minilora ex --help`")
    if isinstance(args.json, Path) and args.do != "grade":
        raise ValueError(f"ex {args.do} takes no file behind --json: only grade does")
    if args.do in NEEDS and args.which is None:
        raise ValueError(f"ex {args.do} needs {NEEDS[args.do]}")
    try:
        from ..exercises import kit  # noqa: F401 - Hypothesis comes with it
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the exercises need {error.name}: pip install 'minilora[exercises]'"
        ) from error
    done: dict[str, Any] = globals()[f"_{args.do}"](args, _in_ascii_too(say))
    return done


def _in_ascii_too(say: Say) -> Say:
    """Lines, in whatever the terminal can show."""

    def line(text: str) -> None:
        code = sys.stdout.encoding or "ascii"
        say(text.encode(code, "replace").decode(code))

    return line


def _unicode() -> bool:
    try:
        "✓✗█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _init(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..exercises import desk

    here = Path(desk.PROGRESS).exists()
    folder = Path(args.which or ("." if here else desk.FOLDER))
    seed = args.seed or secrets.randbelow(10**6)
    at, new = desk.begin(folder, seed, args.only)
    for file in new:
        say(str(file))
    if not new:
        say("all of it is there, and stays as it is")
    minutes = sum(of.minutes for of in at.exercises())
    where = folder if folder.name else "this folder"
    say(f"{len(at.course)} exercises in {where}, about {minutes / 60:.0f} hours in all")
    first = at.exercises()[0]
    say(f"open {at.file(first)}, write its function, then: minilora ex check {first.number}")
    return {"folder": str(folder), "new": [str(file) for file in new], "course": at.course}


def _desk() -> Any:
    from ..exercises import desk

    return desk.find(Path.cwd())


def _status(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    at = _desk()
    rows, wide = [], max(len(of.title) for of in at.exercises())
    for of in at.exercises():
        done = at.of(of.number)
        state = "passed" if done.passed else f"{done.points} of {of.points} points"
        if not done.passed and not done.points:
            state = "open"
        seen = f"{done.hints} of {len(of.hints)} hints seen" if done.hints else ""
        given = "solution seen" if done.given_up else ""
        told = ", ".join(filter(None, (state, seen, given)))
        say(f"{of.number}  {of.title:<{wide}}  {of.minutes:>3} min  chapter {of.chapter}  {told}")
        rows.append({"number": of.number, "title": of.title, "points": done.points,
                     "of": of.points, "passed": done.passed, "hints": done.hints})
    points, most = sum(row["points"] for row in rows), sum(row["of"] for row in rows)
    full = 40 * points // most
    full_, rest = ("█", "░") if _unicode() else ("#", "-")
    say(f"{full_ * full}{rest * (40 - full)}  {points} of {most} points")
    nxt = next((row["number"] for row in rows if not row["passed"]), None)
    say(f"next: minilora ex check {nxt}" if nxt else "all of them are passed")
    return {"folder": str(at.folder), "exercises": rows, "points": points, "of": most}


def _check(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    at = _desk()
    return _checked(at, at.exercise(args.which), args, say)


def _checked(at: Any, of: Any, args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..exercises import book
    from ..exercises import judge as judging
    from ..exercises import report as telling

    verdict = judging.judge(of, at.source(of), seed=args.seed)
    passed = at.of(of.number).passed or verdict.passed
    best = max(verdict.points, at.of(of.number).points)
    at = at.update(of.number, points=best, passed=passed)
    say(telling.verdict(verdict, verbose=args.verbose, unicode=_unicode()))
    if verdict.passed and of.number in book.MILESTONES:
        say(f"  a milestone: minilora ex milestone {of.number}")
    return {
        "exercise": of.number, "points": verdict.points, "of": of.points,
        "passed": verdict.passed, "mistakes": verdict.mistakes,
        "checks": [{"title": outcome.title, "points": outcome.points, "of": outcome.of,
                    "said": outcome.lines} for outcome in verdict.outcomes],
    }


def _watch(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Until it is interrupted."""
    from ..exercises import desk

    at = _desk()
    say(f"watching {at.folder}: save a file, and it is checked; Ctrl-C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        for of in desk.changes(at):
            _checked(_desk(), of, args, say)
    return {"folder": str(at.folder)}


def _hint(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    at = _desk()
    of = at.exercise(args.which)
    seen = min(at.of(of.number).hints + 1, len(of.hints))
    at.update(of.number, hints=seen)
    for i, hint in enumerate(of.hints[:seen], 1):
        say(f"{i} of {len(of.hints)}: {hint}")
    if seen == len(of.hints):
        ask = "" if at.of(of.number).passed or at.of(of.number).given_up else " --give-up"
        say(f"that was the last one; minilora ex solution {of.number}{ask} shows a solution")
    return {"exercise": of.number, "hints": of.hints[:seen]}


def _solution(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    at = _desk()
    of = at.exercise(args.which)
    if not (at.of(of.number).passed or at.of(of.number).given_up or args.give_up):
        raise ValueError(
            f"the solution of {of.number} opens after a pass: minilora ex hint {of.number} helps, "
            f"or minilora ex solution {of.number} --give-up shows it"
        )
    if not at.of(of.number).passed:
        at.update(of.number, given_up=True)
    say(of.solution().rstrip())
    return {"exercise": of.number, "solution": of.solution()}


def _reset(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    at = _desk()
    of = at.exercise(args.which)
    aside = at.reset(of)
    say(f"{at.file(of)} is the stub again" + (f"; what it was is in {aside.name}" if aside else ""))
    return {"exercise": of.number, "file": str(at.file(of)), "aside": aside and str(aside)}


def _milestone(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """In a process of its own: the student's functions run in the engine."""
    from ..exercises import book

    at = _desk()
    of = at.exercise(args.which)
    if of.number not in book.MILESTONES:
        there = ", ".join(book.MILESTONES)
        raise ValueError(f"there is no milestone {of.number}: there are {there}")
    open_ = [n for n in book.MILESTONES[of.number] if not at.of(n).passed]
    if open_:
        raise ValueError(
            f"milestone {of.number} takes what you wrote in {' and '.join(open_)}: pass first, "
            f"minilora ex check {open_[0]}"
        )
    done = subprocess.run(
        [sys.executable, "-m", "minilora.exercises.milestones", of.number, str(at.folder)],
        check=False, capture_output=True, encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or "the milestone failed")
    say(done.stdout.rstrip())
    return {"exercise": of.number, "printed": done.stdout}


def _dev(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..exercises import book, dev

    if args.which not in DEV:
        raise ValueError(f"ex dev takes one of {', '.join(DEV)}, not {args.which!r}")
    if args.which == "new":
        file = dev.new(args.more or "")
        try_it = f"minilora ex dev check {file.name[2:4]}"
        say(f"{file}: write it, then {book.OWN}={file.parent} {try_it}")
        return {"file": str(file)}
    chosen = [book.exercise(args.more)] if args.more else book.exercises()
    if args.which == "messages":
        told = {of.number: dict(dev.messages(of)) for of in chosen}
        for of in chosen:
            say(f"== {of.number} {of.title}")
            for mistake, text in told[of.number].items():
                say(f"-- {mistake}\n{text}\n")
        return {"messages": told}
    found = {}
    for of in chosen:
        found[of.number] = [*dev.complaints(of)]
        slow = max(dev.seconds(of).values())
        mistakes = len(dev.known(of))
        say(f"{of.number} {of.title}: {len(of.checks)} checks, {mistakes} known mistakes, "
            f"slowest check {slow:.2f} s: {'; '.join(found[of.number]) or 'good'}")
    return {"complaints": found, "passed": not any(found.values())}


def _grade(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..exercises import classpage, gradebook, grading

    file = args.json if isinstance(args.json, Path) else None
    made = {
        args.csv: gradebook.table, file: gradebook.as_json,
        args.gradescope: gradebook.gradescope, args.html: classpage.page,
    }
    made.pop(None, None)
    beside = next((out.parent for out in made), Path())
    done = grading.grade(
        args.which, args.seed, args.jobs or 1, say, only=args.only, store=beside / KEPT
    )
    for out, contents in made.items():
        with atomic.writing(out) as to:
            to.write(contents(done))
        say(str(out))
    if not made:
        say(gradebook.table(done).decode().rstrip())
    points = {pupil.name: pupil.points for pupil in done.pupils}
    return {"points": points, "files": [str(out) for out in made]}


def _teach(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..exercises import guide

    text = guide.page()
    say(text)
    return {"page": text}
