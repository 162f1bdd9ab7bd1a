"""Made-up results for the rules of experiments: any score for any cell, with the same spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from minilora.data.tasks import TASKS
from minilora.experiments.cells import Cell, Scale
from minilora.experiments.quality import SHARES
from minilora.experiments.results import Results
from minilora.files.journal import Journal

SPREAD = (-1.0, 0.0, 1.0)  # of three seeds, in units of the noise: its standard deviation


def unit(metric: str) -> float:
    """Return what 1 stands for: the maximum of a metric."""
    return 1.0 if metric in SHARES else 100.0


class MadeUp(Results):
    """score: Cell -> the mean of its metrics, or of each by name, as a share of the maximum.

    The seeds spread by `noise` around it. trained: Cell -> a number of parameters. blind: the score
    of an answer that is drawn blindly.
    """

    def __init__(
        self, score: Callable[[Cell], float | Mapping[str, float]], noise: float = 1e-3,
        trained: Callable[[Cell], int] = lambda cell: 100_000 if cell.method == "full" else 2048,
        blind: float = 0.0,
    ) -> None:
        super().__init__(Journal(None), Scale(seeds=len(SPREAD)))
        self.score, self.noise, self.number, self.blind = score, noise, trained, blind

    def runs(self, cell: Cell) -> list[Any]:
        cell = self._read(cell)
        mean, names = self.score(cell), TASKS[cell.task].metrics
        means = mean if isinstance(mean, Mapping) else dict.fromkeys(names, mean)
        spread = (0.0,) * len(SPREAD) if cell.untrained else SPREAD
        return [{"test": {name: (x + at * self.noise) * unit(name) for name, x in means.items()},
                 "trained": self.number(cell)} for at in spread]

    def chance(self, task: str, metric: str = "") -> float:
        return self.blind * unit(metric or TASKS[task].metrics[0])
