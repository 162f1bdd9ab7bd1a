"""`minilora sweep`: what `minilora finetune` trains, with many settings, on many processes."""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import __version__, viz
from ..files import owned
from ..files.journal import Journal
from ..jobs import executors
from ..jobs.driver import Job, do
from ..viz.axes import LEFT_OUT
from . import board, finetune, grid, inputs
from .parser import Parser, Say
from .streams import Progress

JOURNAL = "runs.jsonl"
KEPT = ("before", "after", "unigrams", "accuracy_before", "accuracy", "frequent", "steps",
        "trainable", "total")  # of what finetune returns


def add_to(top: Parser) -> None:
    to = top.command("sweep", run)
    to.argument("config", "a .toml file: lists of methods, ranks, targets, rates and seeds, and a "
                "table [finetune] with what all points share",
                needs="to know what to run: minilora sweep FILE.toml")
    to.option("--out", read=Path, help="the folder to write (named as the file)")
    inputs.add_executor(to)
    to.flag("--dry-run", help="check the file and list its points; run nothing")
    to.instead["--resume"] = "the same command goes on with what is not done yet"


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train with every combination of methods, ranks, targets, rates and seeds in a file."""
    _check(args)
    path = Path(args.config)
    out, jobs = args.out or path.with_suffix(""), grid.points(path)
    _check_out(out, path)
    check(jobs)
    journal = Journal(out / JOURNAL)
    done = sum(job.key in journal for job in jobs)
    say(f"{path}: {len(jobs)} points" + f", {done} of them done" * bool(done))
    if args.dry_run:
        for job in jobs:
            say(f"  {job.name}" + "  (done)" * (job.key in journal))
        return {"points": [{**job.config["options"], "done": job.key in journal} for job in jobs]}
    out.mkdir(exist_ok=True)
    try:
        with (executors.pool(args.executor, args.jobs) if done < len(jobs) else nullcontext() as
              pool, journal, Progress(len(jobs) - done) as begins):
            results = do(jobs, journal, point, pool, begins, lost=lambda job: {board.CRASHED: True})
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the finished points are in {out / JOURNAL}: the "
                                "same command goes on from there") from None
    return write(out, jobs, results, say)


def point(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of one point: it runs in a worker, and leaves no file.

    Raises ValueError if a file here is not the one that the driver has.
    """
    options = config["options"]
    for name, known in config["files"].items():
        if not Path(options[name]).exists() or grid.digest(options[name]) != known:
            raise ValueError(f"{options[name]} is another file where a worker looks for it: give "
                             "its path on a disk that all workers have")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        args = grid.arguments(options, f"{folder}/point.npz")
        try:
            result = finetune.run(args, lambda line: None)
        except ArithmeticError as error:
            return {board.DIVERGED: str(error)}
    return {name: result[name] for name in KEPT if name in result}


def check(jobs: Iterable[Job]) -> None:
    """Raise ValueError, before any point runs, if finetune refuses one of them."""
    ready = set[tuple[Any, ...]]()
    for job in jobs:
        options = job.config["options"]
        args = grid.arguments(options)
        try:
            finetune.check(args)
            if (kind := (options["method"], options.get("targets"))) not in ready:
                finetune.lesson_of(args, lambda line: None)  # reads the base and the data
                ready.add(kind)
        except ValueError as error:
            raise ValueError(f"{job.name}: {error}") from None


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError for options that cannot act."""
    given = {"--seed": args.seed, "--threads": args.threads is not None, "--plain": args.plain,
             "--backend": args.backend != "numpy"}
    because = {"--seed": "list the seeds in the file", "--threads": "each process has one",
               "--plain": "its runs use all kernels", "--backend": "its runs use NumPy"}
    for option in given:
        if given[option]:
            raise ValueError(f"sweep takes no {option}: {because[option]}")
    executors.check(args.executor, args.jobs)


def _check_out(out: Path, config: Path) -> None:
    """Raise ValueError if the folder cannot be written, or has files that are not a sweep's."""
    if out == config or (out.exists() and not out.is_dir()):
        raise ValueError(f"{out} is a file: give the name of a folder as --out")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: {out.parent} is not a folder: create it first")
    if (known := owned.known(out)) and board.DATA not in known:
        raise ValueError(f"--out {out}: it is no sweep, but minilora wrote it: give another folder")
    owned.check(out, board.PAGES)


def write(
    out: Path, jobs: Sequence[Job], results: Sequence[Mapping[str, Any]], say: Say
) -> dict[str, Any]:
    """Write the table, the figure and all numbers to the folder; print the table."""
    rows = board.rows([job.config["options"] for job in jobs], results)
    table = board.table(rows)
    points = [{**job.config["options"], "result": result} for job, result in zip(jobs, results)]
    result: dict[str, Any] = {"version": __version__, "points": points, "rows": rows}
    files = {board.DATA: (json.dumps(result, indent=1) + "\n").encode(),
             board.TABLE: table.encode(), **board.pictures(rows)}
    owned.write(out, files)
    say(table.rstrip())
    if not viz.available():
        say(LEFT_OUT)
    say(f"the table, its figure and all numbers are in {out}")
    crashed = [job.name for job, result in zip(jobs, results) if board.CRASHED in result]
    if crashed:
        result |= {"passed": False, "failed": (
            f"{crashed[0]} ended its process twice, perhaps for lack of memory" + (
                f", and {len(crashed) - 1} more did" * (len(crashed) > 1))
            + f": to try again, remove the lines with {board.CRASHED} from {out / JOURNAL}, and "
            "give fewer --jobs")}
    return {**result, "out": str(out)}
