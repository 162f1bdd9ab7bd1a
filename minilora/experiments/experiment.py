"""What an experiment declares before anything runs: claims, rules, cells and jobs."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..docstrings import docstring
from ..jobs.driver import Job
from . import statistics
from .cells import Cell
from .order import NAMES
from .results import Results

REPRODUCES, FAILS, UNDECIDED = "reproduces", "does not reproduce", "undecided"
NO_VERDICT = "no verdict"
NOISE = (
    "The noise floor is the half-width of the 95 % interval of a difference between two means over "
    "the seeds. Its standard deviation is that of one method under another seed, pooled over the "
    "methods of the table."
)


@dataclass(frozen=True)
class Effect:
    """A measured difference that has the sign of the claim if it is positive.

    low, high: the 95 % interval of the paired differences over the seeds. floor: the noise floor.
    """

    what: str
    mean: float
    low: float
    high: float
    floor: float

    def __str__(self) -> str:
        interval = f"95 % interval {_finite(self.low)} to {_finite(self.high)}"
        floor = _finite(self.floor, ".2g")
        return f"{self.what}: {_finite(self.mean)} ({interval}, noise floor {floor})"


def _finite(value: float | None, digits: str = "+.3g") -> str:
    """Return a number as text; "–" if it is not finite, or None, as in a stored page."""
    return "–" if value is None or not math.isfinite(value) else f"{value:{digits}}"


@dataclass(frozen=True)
class Verdict:
    """word: REPRODUCES, FAILS or UNDECIDED; because: one sentence with the numbers."""

    word: str
    because: str
    effects: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence that can be wrong, and the rule that decides.

    says      the claim        source   section, table or figure; or an arXiv number
    printed   the numbers that the source prints
    rule      Results -> Verdict; its docstring is the rule in words
    mistake   what is planted to turn the verdict: a variation of the LoRA cells, or a name in the
              experiment's `blunders`; "": the rule is exact, and its tests plant mistakes
    """

    says: str
    source: str
    printed: str
    rule: Callable[[Results], Verdict]
    mistake: str = ""

    @property
    def rule_in_words(self) -> str:
        return " ".join(docstring(self.rule).split())


@dataclass(frozen=True)
class Table:
    """title, a head and rows of text or numbers; note: what a reader must know of it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """name: of the file; draw: no arguments -> the axes, or a list of them; alt: what it shows."""

    name: str
    draw: Callable[[], Any]
    alt: str


@dataclass(frozen=True)
class Experiment:
    """One result of the paper, or one that is known since.

    name, title   as `minilora reproduce name` and as its heading
    cells         what is trained; each gets its own rate, chosen on the validation examples
    every_rate    cells that are run at these rates with every seed: ((cell, rates), ...)
    jobs          Results -> other jobs, once the cells have run, such as a timing
    tables, figures    Results -> what the page shows
    blunders      name -> (Results -> Results with a planted mistake), where it is none of the runs
    noise         how the noise floor is measured
    ready         raises ImportError, with the command, if its runs need what is not installed
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    tables: Callable[[Results], list[Table]]
    figures: Callable[[Results], list[Figure]] = lambda results: []
    cells: tuple[Cell, ...] = ()
    every_rate: tuple[tuple[Cell, tuple[float, ...]], ...] = ()
    jobs: Callable[[Results], list[Job]] = lambda results: []
    blunders: dict[str, Callable[[Results], Results]] = field(default_factory=dict)
    noise: str = NOISE
    ready: Callable[[], None] | None = None
    on_validation: bool = False  # the claims compare losses on the validation examples
    toy: str = ""  # what is special about its setting, for the page

    def verdicts(self, results: Results) -> list[Verdict]:
        """Apply every rule. A smoke run decides nothing."""
        if results.scale.fast:
            words = "this is a smoke run of a few steps: it gives no verdict"
            return [Verdict(NO_VERDICT, words) for _ in self.claims]
        return [claim.rule(results) for claim in self.claims]


def experiment(name: str) -> Experiment:
    """Return an experiment by its name. Raises ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"reproduce: unknown experiment {name!r}: choose {', '.join(NAMES)}")
    module = name.replace("-", "_")
    file: Any = importlib.import_module(f".{NAMES[name]}.{module}", __package__)
    return file.EXPERIMENT  # type: ignore[no-any-return]


def effect(what: str, better: np.ndarray, worse: np.ndarray, floor: float) -> Effect:
    """Return the effect mean(better - worse), paired by seed.

    It is nan, which decides nothing, if a run has no such number, for example because it diverged.
    """
    differences = np.asarray(better) - np.asarray(worse)
    if not np.isfinite(differences).all():
        return Effect(what, np.nan, np.nan, np.nan, floor)
    mean, low, high = statistics.interval(differences)
    return Effect(what, mean, low, high, floor)


def floor_of(results: Results, cells: Sequence[Cell], *path: str, metric: str = "") -> float:
    """Return the noise floor of a difference between two of the cells, in a metric or a number."""
    groups = [results.values(c, *path) if path else results.scores(c, metric) for c in cells
              if not c.untrained]
    return statistics.noise_floor([g[np.isfinite(g)] for g in groups if np.isfinite(g).any()],
                                  results.scale.seeds)


def larger(effects: Sequence[Effect], because: str = "") -> Verdict:
    """Decide a claim that every effect is positive: it reproduces if each is above its floor, and
    does not if one is below minus its floor."""
    if all(e.mean > e.floor for e in effects):
        word = REPRODUCES
    elif any(e.mean < -e.floor for e in effects):
        word = FAILS
    else:
        word = UNDECIDED
    return Verdict(word, because or "; ".join(map(str, effects)), tuple(effects))


def no_worse(effects: Sequence[Effect], margin: float, because: str = "") -> Verdict:
    """Decide a claim that no effect is below -margin: it reproduces if each is above it by more
    than its floor, and does not if one is below it by more than its floor."""
    if all(e.mean - e.floor > -margin for e in effects):
        word = REPRODUCES
    elif any(e.mean + e.floor < -margin for e in effects):
        word = FAILS
    else:
        word = UNDECIDED
    return Verdict(word, because or "; ".join(map(str, effects)), tuple(effects))


def together(*verdicts: Verdict) -> Verdict:
    """Return the verdict of a claim with several parts: it fails if one does, and reproduces only
    if all do."""
    words = [v.word for v in verdicts]
    word = FAILS if FAILS in words else UNDECIDED if UNDECIDED in words else REPRODUCES
    because = "; ".join(v.because for v in verdicts)
    return Verdict(word, because, tuple(e for v in verdicts for e in v.effects))


def plus_minus(values: np.ndarray, digits: int = 3) -> str:
    """Return "mean ± standard deviation" over the seeds."""
    values = np.asarray(values, float)
    if len(values) < 2 or not values.std():
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


