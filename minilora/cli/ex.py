"""`minilora ex`: the exercises, for a student and for a teacher."""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import grade
from .parser import Parser, Run, Say, integer, some_names

SEED = {  # what --seed draws; the other commands draw nothing
    "init": "draws the bugs of exercise 13 (another in each folder)",
    "check": "draws the cases (0): a grading draws other cases than you see at home",
    "watch": "draws the cases (0)", "grade": "draws the cases (0): the same seed, the same points",
}


def add_to(top: Parser) -> None:
    to = top.command("ex", None, "Do the exercises (start with ex init), or teach with them.")

    def of_one(run: Run, example: str = "an exercise: ex {} 01") -> Parser:
        """Add a command for one exercise."""
        sub = to.command(run.__name__, run)
        sub.argument("exercise", "its number, such as 07", needs=example.format(run.__name__))
        return sub

    sub = to.command("init", init)
    sub.argument("folder", "the folder to write (exercises)")
    course = "only these exercises: numbers in order, separated by commas (all)"
    sub.option("--only", read=some_names, help=course)
    to.command("status", status)
    to.command("check", check).argument("exercise", "its number, such as 07 (all)")
    to.command("watch", watch)
    for sub in (to.commands["check"], to.commands["watch"]):
        sub.flag("-v", "--verbose", help="show every failure, and all calls that led to it")
    of_one(hint)
    of_one(solution).flag("--give-up", help="show it even if you have not passed")
    of_one(reset)
    of_one(milestone, "one of 05, 08, 10: ex milestone 05")
    grade.add_to(to)
    to.command("teach", teach)
    dev = to.command("dev", None, "Write exercises of your own.")
    checked = dev.command("check", dev_check)
    for sub in (checked, dev.command("messages", dev_messages)):
        sub.argument("exercise", "its number (all)")
    checked.option("--seeds", read=integer(1),
                   help="try fewer seeds, under which a check must come out the same")
    sub = dev.command("new", dev_new)
    sub.argument("name", "such as 14_name", needs="a number and a name: ex dev new 14_name")
    for sub in (to, *to.commands.values(), *dev.commands.values()):
        sub.describe_only({"--json": "print the result as JSON"} | (
            {"--seed": SEED[last]} if (last := sub.name.split()[-1]) in SEED else {}))


def _desk() -> Any:
    """Return the student's folder: this one, or one around it."""
    from ..exercises import desk, kit  # noqa: F401 - without Hypothesis, kit raises

    return desk.find(Path.cwd())


def _place(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return the folder, the exercise, and the progress in it."""
    desk = _desk()
    exercise = desk.exercise(args.exercise)
    return desk, exercise, desk.of(exercise.number)


def _unicode() -> bool:
    """Can the terminal show the marks?"""
    try:
        "✓✗█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def init(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Write a folder of exercises to solve."""
    from ..exercises import desk as desks

    folder = Path(args.folder or ("." if Path(desks.PROGRESS).exists() else desks.FOLDER))
    desk, new = desks.begin(folder, args.seed or secrets.randbelow(10**6), args.only)
    for file in new:
        say(str(file))
    if not new:
        say("every file exists already, and stays as it is")
    minutes = sum(exercise.minutes for exercise in desk.exercises())
    place = folder if folder.name else "this folder"
    say(f"{len(desk.course)} exercises in {place}, about {minutes / 60:.0f} hours in all")
    first = desk.exercises()[0]
    say(f"open {desk.file(first)}, write its function, then: minilora ex check {first.number}")
    return {"folder": str(folder), "new": [str(file) for file in new], "course": desk.course}


def status(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Show points and what to do next."""
    desk = _desk()
    rows, width = [], max(len(exercise.title) for exercise in desk.exercises())
    for exercise in desk.exercises():
        done, what = _now(desk, exercise)
        state = f"{done.points} of {exercise.points} points" if done.points else "open"
        notes = [
            ("passed" if done.passed else state) + (f" before; now {what}" if what else ""),
            f"{done.hints} of {len(exercise.hints)} hints seen" * bool(done.hints),
            "solution seen" * done.given_up,
        ]
        say(f"{exercise.number}  {exercise.title:<{width}}  {exercise.minutes:>3} min  "
            f"chapter {exercise.chapter}  {', '.join(filter(None, notes))}")
        rows.append({"number": exercise.number, "title": exercise.title, "points": done.points,
                     "of": exercise.points, "passed": done.passed, "now": done.now,
                     "hints": done.hints})
    points, most = sum(row["points"] for row in rows), sum(row["of"] for row in rows)
    length = 40 * points // most
    full, empty = ("█", "░") if _unicode() else ("#", "-")
    say(f"{full * length}{empty * (40 - length)}  {points} of {most} points")
    following = next((row["number"] for row in rows if not row["passed"]), None)
    say(f"next: minilora ex check {following}" if following else "you passed all exercises")
    return {"folder": str(desk.folder), "exercises": rows, "points": points, "of": most}


def _now(desk: Any, exercise: Any) -> tuple[Any, str]:
    """Return the progress in an exercise, and what the file is now if that is less; else "".

    A file that changed since its last check is checked again.
    """
    done, digest = desk.of(exercise.number), desk.digest(exercise)
    if not done.points:
        return done, ""
    if not digest:
        return done, "its file is missing or unreadable"
    if desk.begun(exercise):
        if digest != done.checked:
            done = _noted(desk, exercise, digest, _verdict(desk, exercise))
        now = f"{done.now} of {exercise.points} points"
        return done, now if done.now < done.points else ""
    return replace(done, now=0), "its file is the stub"


def _verdict(desk: Any, exercise: Any, seed: int = 0) -> Any:
    """Judge the student's file."""
    from ..exercises import judge, soundness

    verdict = judge.judge(exercise, desk.source(exercise), seed=seed)
    soundness.assure(exercise, verdict, apart=False)
    return verdict


def _noted(desk: Any, exercise: Any, digest: str, verdict: Any) -> Any:
    """Note the points of a verdict; return the progress."""
    return desk.update(exercise.number, lambda before: replace(
        before, points=max(verdict.points, before.points), now=verdict.points, checked=digest,
        passed=before.passed or verdict.passed,
    ))


def check(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Check your solution of an exercise, or of all."""
    if args.exercise is not None:
        desk, exercise, _ = _place(args)
        return _checked(desk, exercise, args, say)
    desk, results = _desk(), []
    for exercise in desk.exercises():
        try:
            if desk.begun(exercise):
                results.append(_checked(desk, exercise, args, say))
                continue
            words = f"not begun: its file is {desk.file(exercise)}"
        except ValueError as error:  # no text
            words = str(error)
        say(f"{exercise.number} {exercise.title}: {words}")
        results.append({"exercise": exercise.number, "points": 0, "of": exercise.points,
                        "passed": False, "mistakes": [], "checks": []})
    good = sum(result["passed"] for result in results)
    say(f"{good} of {len(results)} exercises pass")
    return {"exercises": results, "passed": good == len(results)}


def _checked(desk: Any, exercise: Any, args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Judge the student's file, note the points, and print the verdict."""
    from ..exercises import book, report

    digest = desk.digest(exercise)
    verdict = _verdict(desk, exercise, args.seed)
    _noted(desk, exercise, digest, verdict)
    say(report.verdict(verdict, verbose=args.verbose, unicode=_unicode()))
    if verdict.passed and exercise.number in book.MILESTONES:
        say(f"  a milestone: minilora ex milestone {exercise.number}")
    return {
        "exercise": exercise.number, "points": verdict.points, "of": exercise.points,
        "passed": verdict.passed, "mistakes": verdict.mistakes,
        "checks": [{"title": outcome.title, "points": outcome.points, "of": outcome.of,
                    "said": outcome.lines} for outcome in verdict.outcomes],
    }


def watch(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Check each file when you save it; Ctrl-C stops."""
    from ..exercises import desk as desks

    desk = _desk()
    say(f"watching {desk.folder}: save a file to check it, press Ctrl-C to stop")
    with contextlib.suppress(KeyboardInterrupt):
        for exercise in desks.changes(desk):
            try:
                _checked(_desk(), exercise, args, say)
            except ValueError as error:  # no text: the next save can mend that
                say(str(error))
    return {"folder": str(desk.folder)}


def hint(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Show one more hint."""
    desk, exercise, done = _place(args)
    number, most = exercise.number, len(exercise.hints)
    done = desk.update(number, lambda before: replace(before, hints=min(before.hints + 1, most)))
    seen = done.hints
    for i, text in enumerate(exercise.hints[:seen], 1):
        say(f"{i} of {len(exercise.hints)}: {text}")
    if seen == len(exercise.hints):
        option = "" if done.passed or done.given_up else " --give-up"
        say(f"that was the last hint; minilora ex solution {number}{option} shows a solution")
    return {"exercise": number, "hints": exercise.hints[:seen]}


def solution(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Show the solution of an exercise that you passed."""
    desk, exercise, done = _place(args)
    number = exercise.number
    if not (done.passed or done.given_up or args.give_up):
        raise ValueError(
            f"the solution of {number} opens after a pass: minilora ex hint {number} helps, "
            f"or minilora ex solution {number} --give-up shows it"
        )
    if not done.passed:
        desk.update(number, lambda before: replace(before, given_up=not before.passed))
    say(exercise.solution().rstrip())
    return {"exercise": number, "solution": exercise.solution()}


def reset(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Write a new stub of an exercise; your file is kept under another name."""
    desk, exercise, _ = _place(args)
    backup = desk.reset(exercise)
    say(f"{desk.file(exercise)} is the stub again"
        + (f"; your version is in {backup.name}" if backup else ""))
    return {"exercise": exercise.number, "file": str(desk.file(exercise)),
            "aside": backup and str(backup)}


def milestone(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train a model with your own functions in the engine."""
    from ..exercises import book

    desk, exercise, _ = _place(args)
    if exercise.number not in book.MILESTONES:
        raise ValueError(
            f"{exercise.number} has no milestone: choose one of {', '.join(book.MILESTONES)}"
        )
    todo = [n for n in book.MILESTONES[exercise.number] if not desk.of(n).passed]
    if todo:
        numbers = " and ".join(book.MILESTONES[exercise.number])
        raise ValueError(
            f"milestone {exercise.number} uses your functions from {numbers}: first pass "
            f"minilora ex check {todo[0]}"
        )
    done = subprocess.run(  # a process of its own: it replaces functions of the engine
        [sys.executable, "-m", "minilora.exercises.milestones", exercise.number, str(desk.folder)],
        check=False, capture_output=True, encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().rpartition("\n")[2] or "the milestone failed")
    say(done.stdout.rstrip())
    return {"exercise": exercise.number, "printed": done.stdout}


def teach(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Print a guide for teachers: courses, grading, new exercises."""
    from ..site import guide

    text = guide.page()
    say(text)
    return {"page": text}


def _chosen(number: str | None) -> Any:
    from ..exercises import book

    return [book.exercise(number)] if number else book.exercises()


def dev_check(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Test exercises: the solution must pass; the stub and each known mistake must fail."""
    from ..exercises import dev

    if args.seeds and args.seeds > dev.SEEDS:
        raise ValueError(f"--seeds {args.seeds}: give at most {dev.SEEDS}, the default")
    complaints = {}
    for exercise in _chosen(args.exercise):
        complaints[exercise.number] = [*dev.complaints(exercise, seeds=args.seeds)]
        slowest = max(dev.seconds(exercise).values())
        say(f"{exercise.number} {exercise.title}: {len(exercise.checks)} checks, "
            f"{len(dev.known(exercise))} known mistakes, "
            f"seeds tried: {dev.tried(exercise, args.seeds)}, slowest check {slowest:.2f} s: "
            f"{'; '.join(complaints[exercise.number]) or 'good'}")
    return {"complaints": complaints, "passed": not any(complaints.values())}


def dev_messages(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Print the message of every known mistake."""
    from ..exercises import dev

    messages = {}
    for exercise in _chosen(args.exercise):
        messages[exercise.number] = dict(dev.messages(exercise))
        say(f"== {exercise.number} {exercise.title}")
        for mistake, text in messages[exercise.number].items():
            say(f"-- {mistake}\n{text}\n")
    return {"messages": messages}


def dev_new(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Write a template of a new exercise."""
    from ..exercises import book, dev

    file = dev.new(args.name)
    command = f"minilora ex dev check {file.name[2:4]}"
    say(f"{file}: write it, then {book.OWN}={file.parent} {command}")
    return {"file": str(file)}
