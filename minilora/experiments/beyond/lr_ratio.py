"""LoRA's best learning rate over that of full fine-tuning (Schulman et al. 2025).

The rates are those of a lattice, two in each octave. A search with the first seed finds the rate
with the lowest loss; then all seeds run at it and at the three rates on each side. The best rate is
the vertex of a parabola, of ln loss over log₂ rate.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np

from ... import viz
from ...jobs.driver import Job
from .. import statistics
from ..cells import Cell, cell
from ..experiment import (
    UNDECIDED,
    Claim,
    Effect,
    Experiment,
    Figure,
    Table,
    Verdict,
    larger,
)
from ..results import Results, validation_loss
from ..statistics import Interval

TASK = "mini-e2e"
ALL = ("q", "k", "v", "o", "up", "down")
RANKS = (1, 4, 16)
ALPHA = 32.0  # as in the source, with the scale alpha / r
FULL = cell(TASK, "full")
LORA = {r: cell(TASK, "lora", r=r, alpha=ALPHA, targets=ALL) for r in RANKS}
NAMED: dict[str, Cell] = {"full fine-tuning": FULL} | {f"LoRA r = {r}": LORA[r] for r in RANKS}
BEGIN, REACH = 0, 3  # of the lattice: where a search begins, and how far the fit goes on each side
LOWEST, HIGHEST = -20, 14  # of the lattice: 1e-6 and 0.13
RATIO, OCTAVES = 10.0, 1.0  # what the source says, and how near to it is "about"


def rate_of(i: int) -> float:
    """Return the rate i half octaves above 0.001."""
    return float(f"{1e-3 * 2 ** (i / 2):.4g}")


def loss_at(results: Results, which: Cell, i: int, seed: int = 0) -> float | None:
    """Return the validation loss at a rate of the lattice; None if it has not run."""
    try:
        return validation_loss(results.at(which, rate_of(i), seed))
    except KeyError:
        return None


def centre(results: Results, which: Cell) -> tuple[int, list[int]]:
    """Return (the i with the lowest loss of the first seed, those that the search needs next).

    The search goes outwards in steps of REACH, then to the lowest within REACH of the lowest.
    """
    if results.scale.fast:
        return BEGIN, []
    known: dict[int, float] = {}
    wanted = [BEGIN - REACH, BEGIN, BEGIN + REACH]
    while True:
        for i in wanted:
            loss = loss_at(results, which, i)
            if loss is not None:
                known[i] = loss
        if missing := [i for i in wanted if i not in known]:
            return BEGIN, missing
        at = min(known, key=lambda i: known[i])
        ends = [i for i in (at - REACH, at + REACH) if LOWEST <= i <= HIGHEST]
        window = around(at)
        wanted = [i for i in ends if i not in known] or [i for i in window if i not in known]
        if not wanted:
            return at, []


def around(at: int) -> list[int]:
    """Return the window of the fit around the best."""
    return [i for i in range(at - REACH, at + REACH + 1) if LOWEST <= i <= HIGHEST]


def jobs(results: Results) -> list[Job]:
    """Return what the searches need, then every seed in the windows."""
    scale, result = results.scale, []
    for which in NAMED.values():
        at, missing = centre(results, which)
        window = [at] if scale.fast else around(at)
        pairs = [(i, 0) for i in missing] or [(i, s) for i in window for s in range(scale.seeds)]
        result += [which.run(rate_of(i), seed, scale) for i, seed in pairs]
    return result


def curve(results: Results, which: Cell) -> dict[int, list[float]]:
    """Return i -> the validation loss of each seed, in the window."""
    at, _ = centre(results, which)
    window = [at] if results.scale.fast else around(at)
    seeds = range(results.scale.seeds)
    return {i: [validation_loss(results.at(which, rate_of(i), seed)) for seed in seeds]
            for i in window}


def best(results: Results, which: Cell) -> Interval | None:
    """Return the vertex in log₂ of the rate, with its 95 % interval; None if there is none."""
    points = [(math.log2(rate_of(i)), math.log(loss))
              for i, losses in curve(results, which).items() for loss in losses]
    if len({x for x, _ in points}) < 4:
        return None
    x, y = zip(*points)
    return statistics.vertex(x, y, of="minimum")


def apart(a: Interval, b: Interval) -> Interval:
    """Return a - b with its interval, from the distances of the ends (Zou and Donner 2008)."""
    low = math.hypot(a.estimate - a.low, b.high - b.estimate)
    high = math.hypot(a.high - a.estimate, b.estimate - b.low)
    middle = a.estimate - b.estimate
    return Interval(middle, middle - low, middle + high)


def near(pairs: dict[str, tuple[Interval | None, Interval | None]], expected: float) -> Verdict:
    """Decide that each ratio of two best rates is within OCTAVES of the expected one: by its whole
    interval. A ratio whose whole interval is outside decides the contrary."""
    effects = []
    for name, (a, b) in pairs.items():
        if a is None or b is None:
            return Verdict(UNDECIDED, f"{name}: the losses have no lowest point in the window")
        ratio = apart(a, b)
        floor = max(ratio.high - ratio.estimate, ratio.estimate - ratio.low)
        inside = OCTAVES - abs(ratio.estimate - math.log2(expected))
        times = f"{2**ratio.estimate:.3g} times ({_range(ratio)})"
        what = f"{name}: {times}; in octaves, what is left to the limit"
        effects.append(Effect(what, inside, inside - floor, inside + floor, floor))
    return larger(effects)


def about_ten(results: Results) -> Verdict:
    """For each rank, the 95 % interval of LoRA's best rate over that of full fine-tuning is between
    5 and 20. If one is wholly outside, the claim fails."""
    full = best(results, FULL)
    return near({f"r = {r}, LoRA over full": (best(results, LORA[r]), full) for r in RANKS}, RATIO)


def same_for_ranks(results: Results) -> Verdict:
    """For each two ranks, the 95 % interval of the ratio of their best rates is between 1/2 and 2.
    If one is wholly outside, the claim fails."""
    vertices = {r: best(results, LORA[r]) for r in RANKS}
    return near({f"r = {b} over r = {a}": (vertices[b], vertices[a])
                 for a, b in combinations(RANKS, 2)}, 1.0)


def tables(results: Results) -> list[Table]:
    full, rows = best(results, FULL), []
    for name, which in NAMED.items():
        own = best(results, which)
        row = [name, "–", "–", "–"]
        if own is not None:
            row[1:3] = [f"{2**own.estimate:.3g}", _range(own)]
            if full is not None and which is not FULL:
                ratio = apart(own, full)
                row[3] = f"{2**ratio.estimate:.3g} ({_range(ratio)})"
        losses = min(np.mean(x) for x in curve(results, which).values())
        rows.append([*row, f"{losses:.3g}"])
    return [Table(
        f"The best learning rate on {TASK}",
        ["method", "best rate", "95 % interval", "over full fine-tuning", "lowest loss"], rows,
        f"LoRA on all linear layers, alpha = {ALPHA:g}, so alpha / r is "
        f"{', '.join(f'{ALPHA / r:g}' for r in RANKS)} for r = {', '.join(map(str, RANKS))}. "
        "Since alpha is a learning rate, another alpha gives another ratio.",
    )]


def _range(interval: Interval) -> str:
    if not math.isfinite(interval.high - interval.low):
        return "not bounded"
    return f"{2**interval.low:.3g} to {2**interval.high:.3g}"


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        ax = viz.rank_sweep(
            {name: {rate_of(i): losses for i, losses in curve(results, which).items()}
             for name, which in NAMED.items()},
            title="Validation loss", xlabel="learning rate", ylabel="loss (nats a token)",
        )
        rates = ax.get_xticks()[::3]
        ax.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
        ax.set_yscale("log")
        return ax

    return [Figure("lr-ratio", draw, "validation loss against the learning rate, for full "
                   "fine-tuning and LoRA of three ranks, with bands over the seeds")]


EXPERIMENT = Experiment(
    name="lr-ratio", title="How much larger is LoRA's best learning rate?", jobs=jobs,
    tables=tables, figures=figures,
    claims=(
        Claim(
            "LoRA's best learning rate is about 10 times that of full fine-tuning.",
            "Schulman et al. 2025, LoRA Without Regret", "about 10", about_ten,
            "the base is not frozen",
        ),
        Claim(
            "It is nearly the same for every rank.", "Schulman et al. 2025, LoRA Without Regret",
            "nearly the same with the scale alpha / r; no number is taken from there",
            same_for_ranks, "the base is not frozen at r = 1",
        ),
    ),
    blunders={
        "the base is not frozen": lambda results: results.swapped(lambda c: FULL),
        "the base is not frozen at r = 1": lambda results: results.swapped(
            lambda c: FULL if c == LORA[1] else c),
    },
    on_validation=True,
    noise="The noise floor is half the width of the ratio's 95 % interval, in octaves. It comes "
        "from Fieller's interval of each vertex.",
    toy="The window of rates reaches a factor of 2.8 to each side of the best.",
)
