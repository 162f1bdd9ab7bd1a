"""`minilora reproduce`: the paper's numbers of parameters, and its results as experiments."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ..experiments.order import NAMES
from . import counts, inputs
from .parser import OneOf, Parser, Say, integer
from .streams import Progress

CHECKED = 3  # runs that --check does again
OPTIONS = (  # of experiments, not of counts
    "out", "seeds", "executor", "jobs", "fast", "from_runs", "check")


def add_to(top: Parser) -> None:
    to = top.command("reproduce", run)
    what = OneOf("all", "counts", *NAMES, metavar="what")
    to.argument(
        "what", f"counts (of parameters and bytes), an experiment, or all: {', '.join(NAMES)}",
        needs="to know what to reproduce: counts, an experiment such as rank, or all", read=what,
    )
    to.flag("--markdown", help="counts: print the tables as Markdown")
    to.option("--out", read=Path, help="folder of the report (report)")
    to.option("--seeds", read=integer(2, 100), help="runs of each method at its best rate (3)")
    inputs.add_executor(to)
    to.set_defaults(executor=None)  # None: not given
    to.flag("--fast", help="a smoke run of a few steps with 2 seeds: it gives no verdict")
    to.flag("--from-runs", help="make the report from the runs that come with the package")
    help = f"do {CHECKED} of the package's runs again, chosen by --seed, and compare their numbers"
    to.flag("--check", help=help)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Do the paper's experiments and report them, or compute its numbers of parameters."""
    given = [name for name in OPTIONS if getattr(args, name) not in (None, False)]
    if args.what == "counts":
        if given:
            option = given[0].replace("_", "-")
            raise ValueError(f"counts takes no --{option}: it prints its tables")
        return counts.run(args, say)
    if args.backend != "numpy" or args.plain:
        option = "--plain" if args.plain else f"--backend {args.backend}"
        raise ValueError(f"an experiment takes no {option}: its runs use NumPy with all kernels")
    if args.markdown:
        raise ValueError(
            f"--markdown is for counts: reproduce {args.what} writes its pages as Markdown"
        )
    if args.fast and args.seeds:
        raise ValueError("--fast has 2 seeds: leave out --seeds")
    if args.check:
        if args.what == "all" or given != ["check"]:
            raise ValueError("--check takes one experiment, and no other option than --seed")
        return _check(args, say)
    return _report(args, say)


def _report(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..experiments import Scale, reporting
    from ..experiments.experiment import experiment
    from ..experiments.results import Results
    from ..experiments.running import estimate, left_out
    from ..experiments.shipped import shipped
    from ..files.journal import Journal
    from ..jobs.executors import pool

    out, scale = args.out or Path("report"), Scale(2, True) if args.fast else Scale(args.seeds or 3)
    names = reporting.select(args.what)
    reporting.check(out, scale)
    if args.from_runs:
        return _from_runs(args, names, out, say)
    journal = out / reporting.JOURNAL
    chosen = [experiment(name) for name in names]
    if args.what == "all":
        for name, why in left_out(chosen, Results(Journal(journal), scale)).items():
            say(f"left out: {why}")
            names.remove(name)
        chosen = [experiment(name) for name in names]
    here = args.jobs == 1 and not args.executor  # in this process
    try:
        with nullcontext() if here else pool(args.executor or "processes", args.jobs) as where:
            jobs = where.at_once if where else 1
            runs, seconds = estimate(chosen, Journal(journal), scale, shipped(), jobs)
            say(f"{_many(len(names), 'experiment')}: about {_many(runs, 'run')} to do, in about "
                f"{_time(seconds)} with {_many(jobs, 'process', 'processes')}")
            with Progress(runs) as begins:
                report = reporting.reproduce(
                    names, out, scale=scale, executor=where, begins=begins)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; the {len(Journal(journal))} finished runs are in {journal}: the same "
            "command goes on from there"
        ) from None
    return _told(report, out, say)


def _from_runs(
    args: argparse.Namespace, names: list[str], out: Path, say: Say
) -> dict[str, Any]:
    """Make the report from the package's runs; of "all", leave out what they are not enough for."""
    from ..experiments import Scale, reporting
    from ..experiments.experiment import experiment
    from ..experiments.results import Results
    from ..experiments.shipped import complete, shipped, versions

    if args.executor or args.jobs or args.fast:
        raise ValueError("--from-runs runs nothing: leave out --executor, --jobs and --fast")
    if args.seeds not in (None, Scale().seeds):
        raise ValueError(f"--from-runs has {Scale().seeds} seeds: leave out --seeds")
    journal = shipped()
    results = Results(journal, Scale())
    there = [name for name in names if complete(experiment(name), results)]
    missing = [name for name in names if name not in there]
    if not there:
        raise ValueError(
            f"the package has no runs of {', '.join(missing)}: reproduce without --from-runs "
            "makes them"
        )
    if missing:
        say(f"left out, as their runs are not shipped: {', '.join(missing)}")
    if others := versions(journal):
        say(f"the runs were made by version {', '.join(others)} of minilora")
    return _told(reporting.reproduce(there, out, journal=journal), out, say)


def _told(report: dict[str, Any], out: Path, say: Say) -> dict[str, Any]:
    """Print every claim with its verdict, and where the report is."""
    for one in report["experiments"]:
        say(f"{one['name']}: {one['title']}")
        for claim in one["claims"]:
            say(f"  {claim['verdict']:<18} {claim['says']}")
    say(f"the report is in {out}: open {out / 'index.html'}")
    return {**report, "out": str(out)}


def _many(n: int, word: str, words: str = "") -> str:
    return f"{n:,} {word if n == 1 else words or f'{word}s'}"


def _time(seconds: float) -> str:
    return f"{seconds / 60:,.0f} minutes" if seconds >= 90 else f"{max(1, seconds):.0f} seconds"


def _check(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    from ..experiments import Scale, shipped
    from ..experiments.experiment import experiment
    from ..experiments.results import Results

    results, compared = Results(shipped.shipped(), Scale()), []
    with Progress(CHECKED) as begins:
        for numbers in shipped.check(experiment(args.what), results, CHECKED, args.seed):
            begins(numbers[0].run)
            begins.clear()
            say(numbers[0].run)
            for one in numbers:
                how = "equal" if not one.apart else f"{one.apart:.2g} of its size apart"
                say(f"  {one.what:<28} {one.stored!s:>12} {one.now!s:>12}  {how}")
            compared += numbers
    worst = max(compared, key=lambda one: one.apart)
    equal = sum(not one.apart for one in compared)
    say(f"{equal} of {len(compared)} numbers are equal. Another processor rounds otherwise in each "
        f"step, so {shipped.TOLERANCE:.0%} of its size is allowed for each.")
    result = {"numbers": [one._asdict() for one in compared], "equal": equal,
              "tolerance": shipped.TOLERANCE, "passed": worst.apart <= shipped.TOLERANCE}
    if not result["passed"]:
        result["failed"] = (f"{worst.run}: {worst.what} was {worst.stored} and is {worst.now}, "
                            f"further apart than {shipped.TOLERANCE:.0%}")
    return result
