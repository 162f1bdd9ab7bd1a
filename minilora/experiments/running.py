"""Run experiments: choose the rates, train every cell with every seed, then the other jobs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..data.tasks import TASKS
from ..files.journal import Journal
from ..jobs.driver import Job, do
from ..jobs.executors import Pool
from .cells import START, Cell, Scale
from .experiment import Experiment
from .kinds import work
from .results import Results

SECONDS = 4.0  # of a run of which no other is known
SMOKE = 0.1  # of the seconds of a run: about what one of a smoke run takes


def run(
    experiments: Sequence[Experiment], journal: Journal, scale: Scale,
    pool: Pool | None = None, begins: Callable[[str], Any] = lambda name: None,
) -> Results:
    """Do all that the experiments need and the journal lacks. Return the results.

    Raises ImportError before the first run if a library is missing that an experiment, or the
    scores of a task, needs.
    """
    results = Results(journal, scale)
    for why in left_out(experiments, results).values():
        raise why
    cells = unique(cell for one in experiments for cell in one.cells)

    def finish(jobs: Iterable[Job]) -> None:
        jobs = [job for job in jobs if job.key not in journal]
        for task in dict.fromkeys(job.config["task"] for job in jobs if job.kind == "train"):
            TASKS[task].ready()
        do(jobs, journal, work, pool, begins)

    while jobs := [cell.run(rate, 0, scale) for cell in cells for rate in results.search(cell)[1]]:
        finish(jobs)
    finish(job for one in experiments for job in trainings(one, results))
    for one in experiments:
        while jobs := [j for j in one.jobs(results) if j.key not in journal]:
            finish(jobs)
    return results


def trainings(experiment: Experiment, results: Results) -> list[Job]:
    """Return all runs of an experiment whose rates are chosen, with those of planted mistakes."""
    scale = results.scale
    jobs = [cell.run(rate, 0, scale) for cell in experiment.cells for rate in results.tried(cell)]
    jobs += [job for cell in experiment.cells for job in repeats(results, cell)]
    jobs += [
        cell.run(rate, seed, scale) for cell, rates in experiment.every_rate
        for rate in scale.rates(rates) for seed in range(scale.seeds)
    ]
    return list({job.key: job for job in [*jobs, *planted(experiment, results)]}.values())


def needed(experiment: Experiment, results: Results) -> list[Job]:
    """Return all jobs whose results an experiment reads. KeyError if some have not run."""
    return [*trainings(experiment, results), *experiment.jobs(results)]


def complete(experiment: Experiment, results: Results) -> bool:
    """Return whether the journal has all runs that an experiment needs."""
    try:
        return all(job.key in results.journal for job in needed(experiment, results))
    except (KeyError, ValueError):  # the choice of a rate lacks a run
        return False


def left_out(experiments: Iterable[Experiment], results: Results) -> dict[str, ImportError]:
    """Return the experiments with runs to do that need what is not installed: name -> the error."""
    found = dict[str, ImportError]()
    for one in experiments:
        if one.ready and not complete(one, results):
            try:
                one.ready()
            except ImportError as error:
                found[one.name] = error
    return found


def unique(cells: Iterable[Cell]) -> list[Cell]:
    return list(dict.fromkeys(cells))


def repeats(results: Results, cell: Cell) -> list[Job]:
    """Return the runs of a cell at the chosen rate, one for each seed."""
    seeds = 1 if cell.untrained else results.scale.seeds
    return [cell.run(results.rate(cell), seed, results.scale) for seed in range(seeds)]


def planted(experiment: Experiment, results: Results) -> list[Job]:
    """Return the runs with the mistakes that turn the verdicts: LoRA's cells, at their rates."""
    return [
        cell.run(results.rate(replace(cell, variation="")), seed, results.scale)
        for cell in varied(experiment) for seed in range(results.scale.seeds)
    ]


def varied(experiment: Experiment) -> list[Cell]:
    """Return LoRA's cells with each mistake that is planted in the runs of an experiment."""
    mistakes = dict.fromkeys(claim.mistake for claim in experiment.claims if claim.mistake)
    return [cell.varied(mistake) for mistake in mistakes if mistake not in experiment.blunders
            for cell in experiment.cells if cell.lora and not cell.variation]


def estimate(
    experiments: Sequence[Experiment], journal: Journal, scale: Scale, known: Journal, at_once: int
) -> tuple[int, float]:
    """Return the number of runs that are left, about, and about the seconds that they take.

    known: finished runs, whose seconds count; the journal's own are better and come last.
    """
    seconds: dict[str, list[float]] = {}
    for line in [*known.lines.values(), *journal.lines.values()]:
        seconds.setdefault(line["config"].get("task", line["kind"]), []).append(line["seconds"])
    results, left = Results(journal, scale), Counter[str]()
    for cell in unique(cell for one in experiments for cell in one.cells):
        left[cell.task] += _left(results, cell)
    for cell in unique(cell for one in experiments for cell in varied(one)):
        left[cell.task] += _left(results, cell, search=False)
    jobs = {job.key: job for one in experiments for job in _known_jobs(one, results)}
    for job in jobs.values():
        left[job.config.get("task", job.kind)] += job.key not in journal
    share = SMOKE if scale.fast and not journal.lines else 1.0
    total = sum(n * statistics.median(seconds.get(what, [SECONDS])) for what, n in left.items())
    return left.total(), total * share / max(1, at_once)


def _left(results: Results, cell: Cell, search: bool = True) -> int:
    """Return how many runs of a cell are left, about. search: its rate is chosen for itself."""
    scale, own = results.scale, replace(cell, variation="") if not search else cell
    tried, missing = results.search(own)
    if not missing:
        seeds = range(1 if cell.untrained else scale.seeds)
        runs = [cell.run(results.rate(own), seed, scale) for seed in seeds]
        return sum(job.key not in results.journal for job in runs)
    usual = 0 if not search else 1 if scale.fast or cell.untrained else len(START) + 1
    return max(len(missing), usual - len(tried)) * search + scale.seeds - search


def _known_jobs(experiment: Experiment, results: Results) -> list[Job]:
    """Return the jobs of an experiment beside those of its cells, as far as they are known."""
    scale = results.scale
    runs = [cell.run(rate, seed, scale) for cell, rates in experiment.every_rate
            for rate in scale.rates(rates) for seed in range(scale.seeds)]
    try:
        return [*runs, *experiment.jobs(results)]
    except KeyError:  # they depend on runs that are not there yet
        return runs
