"""What it takes to grade a course: measured for one file of each kind, planned for many students.

    python tests/benchmarks/course.py [--students N] [--jobs N] [--executor NAME] [--plan 1000,64]

The model: a file takes the processor seconds that one of its exercise and kind took here. A worker
judges one file at a time, in the order of the driver, and has a core of its own. It takes BEGIN
seconds to start. The driver takes EACH seconds a file, one file after another. With --students a
class is really graded, and compared with the model. It reads /proc: for Linux.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from minilora.exercises import book, grading
from minilora.exercises.student import LIMITS
from minilora.files.journal import Journal
from minilora.jobs import executors

SHARES = {"right": 0.6, "wrong": 0.25, "stub": 0.15}  # of the files of a class
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def source(number: str, kind: str, name: str = "") -> str:
    """A file of a kind. Each student's has other letters, so that none is judged for another."""
    of = book.exercise(number)
    if kind == "stub":
        return f"{of.stub()}\n# {name}\n"
    above = of.solution()
    if kind == "wrong":  # its first function returns its first argument
        above += f"\n\ndef {of.functions[0]}(*args):\n    return args[0]\n"
    return f"{above}\n# {name}\n"


def used(process: int) -> float:
    """Seconds of processor time of a process, and of its children that have ended."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def measured(numbers: list[str]) -> tuple[float, dict[tuple[str, str], float]]:
    """Return the seconds to start a judge, and those of each exercise and kind."""
    judge = grading._Judge(0, LIMITS, tempfile.gettempdir())
    try:
        process, seconds = judge._running().pid, dict[tuple[str, str], float]()
        begin = used(process)
        for number in numbers:
            for kind in SHARES:
                before = used(process)
                judge.result(book.exercise(number), source(number, kind))
                seconds[number, kind] = used(process) - before
    finally:
        judge.close()
    return begin, seconds


def each() -> float:
    """Return the seconds that the journal takes for a file: a line, and a wait for the disk."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "runs.jsonl") as journal:
        began = time.monotonic()
        for i in range(50):
            journal.add(str(i), {"result": "x" * 1500})
        return (time.monotonic() - began) / 50


def planned(files: list[float], workers: int, begin: float, driver: float) -> float:
    """Return the seconds from the first file to the last, by the model."""
    free, ready = [begin] * workers, 0.0
    for seconds in files:
        ready += driver  # the driver hands them out one after another
        start = max(heapq.heappop(free), ready)
        heapq.heappush(free, start + seconds)
    return max(free)


def drawn(students: int, numbers: list[str], seed: int = 0) -> list[tuple[str, str, str]]:
    """A class: (student, number, kind) of each file, in the driver's order."""
    rng = random.Random(seed)
    return [(f"student {i:04}", number, rng.choices([*SHARES], [*SHARES.values()])[0])
            for i in range(students) for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=0, help="grade so many, too (0)")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--executor", default="")
    parser.add_argument("--only", default=",".join(book.paths()))
    parser.add_argument("--plan", default="1000,64", help="students, and processes")
    args = parser.parse_args()
    numbers = args.only.split(",")
    begin, seconds = measured(numbers)
    print(f"a judge starts in {begin:.2f} s. Seconds of processor time of a file:")
    print("exercise" + "".join(f"{kind:>8}" for kind in SHARES))
    for number in numbers:
        print(f"{number:<8}" + "".join(f"{seconds[number, kind]:>8.2f}" for kind in SHARES))
    students, workers = map(int, args.plan.split(","))
    driver = each()
    files = [seconds[number, kind] for _, number, kind in drawn(students, numbers)]
    print(f"plan: {len(files):,} files of {students:,} students take {sum(files):,.0f} s of one "
          f"core; {workers} processes: {planned(files, workers, begin, driver):,.0f} s, with "
          f"{1e3 * driver:.1f} ms a file in the driver")
    if args.students:
        graded(args, numbers, seconds)


def graded(
    args: argparse.Namespace, numbers: list[str], seconds: dict[tuple[str, str], float]
) -> None:
    """Grade a class, and say what it took and what the model says."""
    files = drawn(args.students, numbers)
    with tempfile.TemporaryDirectory() as folder:
        for name, number, kind in files:
            place = Path(folder, name)
            place.mkdir(exist_ok=True)
            (place / book.exercise(number).name).write_text(source(number, kind, name), "utf-8")
        began, before = time.monotonic(), os.times()
        where = executors.pool(args.executor, args.jobs) if args.executor else nullcontext()
        with where as pool:
            of = grading.grade(folder, 0, args.jobs, lambda _: None, only=numbers, executor=pool)
        now, wall = os.times(), time.monotonic() - began
    points = {(pupil.name, one.number): one.points for pupil in of.pupils for one in pupil.results}
    right = {(name, number) for name, number, kind in files if kind == "right"}
    full = {place for place, n in points.items() if n == book.exercise(place[1]).points}
    cpu = sum(now[2:4]) - sum(before[2:4])
    print(f"graded: {len(files):,} files in {wall:,.0f} s with {args.jobs} at a time, "
          f"{cpu:,.0f} s of processor time (model: "
          f"{sum(seconds[number, kind] for _, number, kind in files):,.0f} s); full points: "
          f"{len(full)}, of {len(right)} right ones: {len(full & right)}")


if __name__ == "__main__":
    main()
