"""What the runs of an experiment gave: the rate that validation chose, and scores by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np

from ..data.tasks import TASKS
from ..files.journal import Journal
from ..jobs.driver import Job
from .cells import GRID, START, Cell, Scale, chance

Values = np.ndarray  # (seeds,)
DIVERGED = 10.0  # nats a token: the loss of a run that diverged, above that of a uniform guess


class Results:
    """The results of finished jobs.

    mistake: a variation; LoRA's cells are then read from the runs with that mistake, at the rate
    that was chosen without it. So a test can see whether a verdict turns.
    """

    def __init__(self, journal: Journal, scale: Scale, mistake: str = "") -> None:
        self.journal, self.scale, self.mistake = journal, scale, mistake
        self._read: Callable[[Cell], Cell] = lambda cell: cell
        self._change: Callable[[Job, Any], Any] = lambda job, result: result

    def swapped(self, read: Callable[[Cell], Cell]) -> Results:
        """Return these results with a planted mistake: each cell is read from the runs of another,
        read(cell)."""
        other = copy(self)
        other._read = read
        return other

    def changed(self, change: Callable[[Job, Any], Any]) -> Results:
        """Return these results with change(job, result) in place of each: a planted mistake."""
        other, before = copy(self), self._change
        other._change = lambda job, result: change(job, before(job, result))
        return other

    def job(self, job: Job) -> Any:
        """Return the result of a job; KeyError if it has not run."""
        if job.key not in self.journal:
            raise KeyError(f"there is no run of {job.name or job.kind}: run the experiment first")
        return self._change(job, self.journal[job.key]["result"])

    def at(self, cell: Cell, rate: float, seed: int) -> Any:
        """Return the result of one run."""
        return self.job(self._read(cell).run(rate, seed, self.scale))

    def tried(self, cell: Cell) -> dict[float, Any]:
        """Return the first seed's result for each rate of the search, as far as it has come.

        Other runs of the cell do not count: what is chosen does not depend on what else has run.
        """
        return self.search(cell)[0]

    def search(self, cell: Cell) -> tuple[dict[float, Any], list[float]]:
        """Return (what was tried, the rates that the search needs next)."""
        tried: dict[float, Any] = {}
        if cell.untrained:
            job = cell.run(0.0, 0, self.scale)
            return ({0.0: self.job(job)}, []) if job.key in self.journal else ({}, [0.0])
        while rates := next_rates(tried, TASKS[cell.task].metrics[0], self.scale):
            jobs = {rate: cell.run(rate, 0, self.scale) for rate in rates}
            missing = [rate for rate, job in jobs.items() if job.key not in self.journal]
            if missing:
                return tried, missing
            tried |= {rate: self.job(job) for rate, job in jobs.items()}
        return tried, []

    def rate(self, cell: Cell) -> float:
        """Return the rate with the best validation score of the first seed; of equals, the one with
        the lowest validation loss. The test set is not seen."""
        cell = self._read(cell)
        if not (tried := self.tried(cell)):
            raise KeyError(
                f"there is no run of {cell.label()} on {cell.task}: run the experiment first"
            )
        return best(tried, TASKS[cell.task].metrics[0])

    def runs(self, cell: Cell) -> list[Any]:
        """Return the result of each seed at the chosen rate."""
        rate, cell = self.rate(cell), self._read(cell)
        if self.mistake and cell.lora and not cell.variation:
            cell = cell.varied(self.mistake)
        jobs = [cell.run(rate, seed, self.scale) for seed in range(self.scale.seeds)]
        return [self.job(job) for job in jobs]

    def scores(self, cell: Cell, metric: str = "", part: str = "test") -> Values:
        """Return a metric (the main one) of each seed. A run that diverged scores as 0."""
        return _scores(self.runs(cell), metric or TASKS[cell.task].metrics[0], part)

    def scores_at(self, cell: Cell, rate: float) -> Values:
        """Return the main metric of each seed on the test set, at a rate of `every_rate`."""
        runs = [self.at(cell, rate, seed) for seed in range(self.scale.seeds)]
        return _scores(runs, TASKS[cell.task].metrics[0], "test")

    def values(self, cell: Cell, *path: str) -> Values:
        """Return a number of each run: values(cell, "updates", "q", "rank")."""
        return np.array([_at(run, path) for run in self.runs(cell)], float)

    def log_losses(self, cell: Cell) -> Values:
        """Return ln of the loss on the validation examples, of each seed."""
        return np.log([validation_loss(run) for run in self.runs(cell)])

    def trained(self, cell: Cell) -> int:
        """Return the number of trained parameters, without a head."""
        return next((int(run["trained"]) for run in self.runs(cell) if "trained" in run), 0)

    def chance(self, task: str, metric: str = "") -> float:
        """Return a metric (the main one) of answers drawn from the training examples, blindly."""
        found = self.job(chance(task, self.scale))
        return float(found[metric or TASKS[task].metrics[0]])


def best(tried: Mapping[float, Any], metric: str) -> float:
    """Return the rate whose result is the best on the validation examples; if all diverged, the
    smallest."""
    def order(rate: float) -> tuple[float, float]:
        result = tried[rate]
        if "diverged" in result:
            return -np.inf, -rate
        return result["validation"][metric], -result["loss"]["validation"]

    return max(tried, key=order)


def _scores(runs: Sequence[Any], metric: str, part: str) -> Values:
    return np.array([run[part][metric] if part in run else 0.0 for run in runs])


def validation_loss(run: Any) -> float:
    """Return a run's loss on the validation examples; DIVERGED if it diverged."""
    return DIVERGED if "diverged" in run else float(run["loss"]["validation"])


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return np.nan
        value = value[name]
    return value


def next_rates(tried: Mapping[float, Any], metric: str, scale: Scale) -> list[float]:
    """Return the rates to try next: three at first, then outwards while the best is the outermost.

    The score is taken to have one peak over the rate.
    """
    if scale.fast:
        return [] if tried else [START[1]]
    if not tried:
        return list(START)
    at, grid = GRID.index(best(tried, metric)), set(tried)
    return [GRID[i] for i in (at - 1, at + 1) if 0 <= i < len(GRID) and GRID[i] not in grid]
