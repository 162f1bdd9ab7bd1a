"""Run experiments: choose the rates, train every cell with every seed, then the other jobs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

from ..files.journal import Journal
from .cells import Cell, Scale
from .experiment import Experiment
from .jobs import Job, do
from .results import Results

SECONDS = 4.0  # of a run of which no other is known


def run(
    experiments: Sequence[Experiment], journal: Journal, scale: Scale,
    executor: Executor | None = None, begins: Callable[[str], Any] = lambda name: None,
) -> Results:
    """Do all that the experiments need and the journal lacks. Return the results."""
    results = Results(journal, scale)
    cells = unique(cell for one in experiments for cell in one.cells)

    def finish(jobs: Iterable[Job]) -> None:
        do(jobs, journal, executor, begins)

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


def unique(cells: Iterable[Cell]) -> list[Cell]:
    return list(dict.fromkeys(cells))


def repeats(results: Results, cell: Cell) -> list[Job]:
    """Return the runs of a cell at the chosen rate, one for each seed."""
    seeds = 1 if cell.untrained else results.scale.seeds
    return [cell.run(results.rate(cell), seed, results.scale) for seed in range(seeds)]


def planted(experiment: Experiment, results: Results) -> list[Job]:
    """Return the runs with the mistakes that turn the verdicts: LoRA's cells, at their rates."""
    mistakes = dict.fromkeys(claim.mistake for claim in experiment.claims if claim.mistake)
    return [
        cell.varied(mistake).run(results.rate(cell), seed, results.scale)
        for mistake in mistakes if mistake not in experiment.blunders
        for cell in experiment.cells if cell.lora and not cell.variation
        for seed in range(results.scale.seeds)
    ]


def estimate(
    experiments: Sequence[Experiment], journal: Journal, scale: Scale, known: Journal, at_once: int
) -> tuple[int, float]:
    """Return the number of runs that are left, at least, and about the seconds that they take.

    known: finished runs, whose seconds count; the journal's own are better and come first.
    """
    lines = [*known.lines.values(), *journal.lines.values()]
    seconds: dict[str, list[float]] = {}
    for line in lines:
        seconds.setdefault(line["config"].get("task", line["kind"]), []).append(line["seconds"])
    results, runs, total = Results(journal, scale), 0, 0.0
    for cell in unique(cell for one in experiments for cell in one.cells):
        tried = results.tried(cell)
        done = len(tried) + max(0, sum(
            cell.run(rate, seed, scale).key in journal
            for rate in tried for seed in range(1, scale.seeds)
        ))
        wanted = 1 if cell.untrained else (1 if scale.fast else 4) + scale.seeds - 1
        left = max(0, wanted - done)
        runs += left
        total += left * statistics.median(seconds.get(cell.task, [SECONDS]))
    for one in experiments:
        for cell, rates in one.every_rate:
            left = sum(cell.run(rate, seed, scale).key not in journal
                       for rate in scale.rates(rates) for seed in range(scale.seeds))
            runs += left
            total += left * statistics.median(seconds.get(cell.task, [SECONDS]))
    share = 0.05 if scale.fast and not journal.lines else 1.0
    return runs, total * share / max(1, at_once)
