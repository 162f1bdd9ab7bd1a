"""The runs that come with the package: the report in seconds, and a check of single runs."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..files.journal import Journal
from ..jobs.driver import Job, timed
from .experiment import Experiment
from .kinds import work
from .results import Results
from .running import complete as complete
from .running import needed

RUNS = Path(__file__).parent / "runs.jsonl.gz"
# Of a number's size. Another processor rounds otherwise in each step. OpenBLAS's kernels for
# three processors gave numbers of runs of 200 steps up to 0.006 apart, all scores equal.
TOLERANCE = 0.02
NOTHING = 1e-9  # a number below it is 0 but for rounding


def shipped(path: Path = RUNS) -> Journal:
    """Return the journal of the runs in the package, empty if there are none.

    A run is found by its settings, whichever version of the package made it.
    """
    journal = Journal(None)
    if path.exists():
        for text in gzip.decompress(path.read_bytes()).splitlines():
            line = json.loads(text)
            journal.add(Job(line["kind"], line["config"]).key, line)
    return journal


def pack(journal: Journal, path: Path = RUNS) -> None:
    """Write a journal's runs as those that the package ships, in the order of their keys."""
    lines = [json.dumps(journal[key]) for key in sorted(journal.lines)]
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))


def versions(journal: Journal) -> list[str]:
    """Return the versions of minilora that made the runs, apart from this one."""
    return sorted({line["version"] for line in journal.lines.values()} - {__version__})


class Compared(NamedTuple):
    """A number of a stored run and of the same run now; apart: their relative difference."""

    run: str
    what: str
    stored: Any
    now: Any
    apart: float


def check(
    experiment: Experiment, results: Results, n: int, seed: int
) -> Iterator[list[Compared]]:
    """Do n of an experiment's stored runs again, drawn with the seed; yield each one's numbers.

    Runs that measure time are left out: ValueError if there are no others. A run that was done on
    the same processor gives the same numbers; TOLERANCE says how far another may be off.
    """
    jobs = [job for job in needed(experiment, results) if not job.alone]
    if not jobs:
        raise ValueError(f"{experiment.name} measures times alone: they are not the same twice")
    drawn = np.random.default_rng(seed).permutation(len(jobs))[:n]
    for job in (jobs[i] for i in sorted(drawn)):
        stored = results.job(job)
        now, _ = timed(work, job.kind, job.config, __version__)
        again = Journal(None)
        again.add(job.key, {"result": now})  # as JSON holds it
        yield [*compare(job.name or job.kind, stored, again[job.key]["result"])]


def compare(run: str, stored: Any, now: Any, what: str = "") -> Iterator[Compared]:
    """Compare all numbers of two results, by their names; what is not in both is infinitely apart.
    """
    if isinstance(stored, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*stored, *now]):
            yield from compare(run, stored.get(name), now.get(name), f"{what} {name}".strip())
    elif _listed(stored) and _listed(now) and len(stored) == len(now):
        for i, (a, b) in enumerate(zip(stored, now)):
            yield from compare(run, a, b, f"{what} {i}".strip())
    elif _number(stored) and _number(now):
        size = max(abs(stored), abs(now))
        apart = abs(stored - now) / size if size > NOTHING else 0.0
        yield Compared(run, what, stored, now, apart)
    else:
        yield Compared(run, what, stored, now, 0.0 if stored == now else float("inf"))


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
