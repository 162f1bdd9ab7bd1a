"""Tables of quality: methods in rows, the tasks' metrics in columns, trained parameters beside.

A method is a cell without a task, cell("", "lora", r=4); `on` puts it on one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from ..data.tasks import TASKS
from . import statistics
from .cells import Cell, cell
from .experiment import FAILS, REPRODUCES, Table, Verdict, plus_minus
from .results import Results, Values

# Metrics with a maximum of 1; all others have a maximum of 100, or none.
SHARES = ("accuracy", "exact", "f1", "matthews", "pearson", "spearman")
MARGIN = 2.0  # "about equal" means at most this much less, in points of 100


def margin(task: str) -> float:
    """Return MARGIN in the units of a task's main metric."""
    return MARGIN / 100 if TASKS[task].metrics[0] in SHARES else MARGIN


def mean_over(results: Results, method: Cell, tasks: Sequence[str]) -> Values:
    """Return the mean of the main metrics over the tasks, for each seed: (seeds,)."""
    scores = np.array([results.scores(method.on(task)) for task in tasks])
    return np.asarray(scores.mean(axis=0))


def floor_of_means(results: Results, methods: Collection[Cell], tasks: Sequence[str]) -> float:
    """Return the noise floor of a difference between two such means."""
    groups = [mean_over(results, method, tasks) for method in methods if not method.untrained]
    return statistics.noise_floor(groups, results.scale.seeds)


def unlearned(results: Results, task: str) -> Values:
    """Return what a decoder scores without learning, for each seed: the larger one of the base's
    score and of an answer drawn blindly from the training examples."""
    return np.asarray(np.maximum(results.scores(cell(task, "base")), results.chance(task)))


def best_of(results: Results, cells: Collection[Cell]) -> Cell:
    """Return the cell with the largest mean of the main metric."""
    return max(cells, key=lambda one: float(results.scores(one).mean()))


def fewer(results: Results, less: Cell, more: Sequence[Cell], times: int = 1) -> Verdict:
    """Decide exactly whether a cell trains at most 1 / times of the parameters of each other."""
    own, others = results.trained(less), {one: results.trained(one) for one in more}
    word = REPRODUCES if all(own * times <= n for n in others.values()) else FAILS
    counts = ", ".join(f"{one.label()} {n:,}" for one, n in others.items())
    return Verdict(word, f"trained parameters: {less.label()} {own:,}; {counts}")


def digits(metric: str) -> int:
    """Return the number of decimals in which a table shows a metric."""
    return 3 if metric in SHARES else 2 if metric in ("nist", "cider") else 1


def quality_table(
    results: Results, title: str, methods: Sequence[Cell], columns: Sequence[tuple[str, str]],
    *, mean: bool = False, chance: bool = False, note: str = "",
) -> Table:
    """Return the scores, mean ± standard deviation over the seeds.

    columns: (task, metric) of each. mean: one more column with the mean over them. chance: one
    more row, answers drawn blindly from the training examples.
    """
    several = len({task for task, _ in columns}) > 1
    names = [f"{task}: {metric}" if several else metric for task, metric in columns]
    head = ["method", "trained parameters", *names, *["mean"] * mean]
    rows = []
    for method in methods:
        scores = [results.scores(method.on(task), metric) for task, metric in columns]
        shown = [plus_minus(x, digits(metric)) for x, (_, metric) in zip(scores, columns)]
        total = [plus_minus(np.mean(scores, axis=0))] * mean
        count = f"{results.trained(method.on(columns[0][0])):,}"
        rows.append([method.label(), count, *shown, *total])
    if chance:
        drawn = [results.chance(task, metric) for task, metric in columns]
        shown = [f"{x:.{digits(metric)}f}" for x, (_, metric) in zip(drawn, columns)]
        rows.append(["chance", "", *shown, *[f"{np.mean(drawn):.3f}"] * mean])
    return Table(title, head, rows, note)
