"""LoRA and its variants at one learning rate for all, and each at its own best (arXiv 2602.04998).

A method that needs another rate looks worse at a rate that was chosen for a rival. So a table at
one rate compares the rates, not the methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from ... import viz
from .. import statistics
from ..cells import NAMES, START, Cell, cell
from ..experiment import (
    FAILS,
    UNDECIDED,
    Claim,
    Effect,
    Experiment,
    Figure,
    Table,
    Verdict,
    effect,
    floor_of,
    larger,
    no_worse,
    plus_minus,
    together,
)
from ..results import Results, Values

METHODS = ("lora", "rslora", "lora+", "pissa", "dora")
TASKS = ("mini-e2e", "mini-sql")
SHARED = "mini-e2e"  # the task on which all methods run at each of the shared rates
R = 4
MARGIN = 0.02  # of the best score: the source says 1 to 2 %


def at(task: str, method: str) -> Cell:
    return cell(task, method, r=R)


CELLS = tuple(at(task, method) for task in TASKS for method in METHODS)


def own(results: Results, task: str) -> dict[str, Values]:
    """Return the scores of each method at its own best rate."""
    return {method: results.scores(at(task, method)) for method in METHODS}


def shared(results: Results, rate: float) -> dict[str, Values]:
    """Return the scores of each method at a rate that all share."""
    return {method: results.scores_at(at(SHARED, method), rate) for method in METHODS}


def rates(results: Results) -> tuple[float, ...]:
    """Return the shared rates: those that all searches begin with."""
    return results.scale.rates(START)


def ends(scores: Mapping[str, Values]) -> tuple[str, str]:
    """Return the names of the best and the worst, by their means."""
    order = sorted(scores, key=lambda method: float(scores[method].mean()))
    return order[-1], order[0]


def floor(results: Results) -> float:
    """Return the noise floor on the shared task, at all the rates: the spread that a method has
    under another seed may depend on the rate."""
    groups = [values for rate in rates(results) for values in shared(results, rate).values()]
    return statistics.noise_floor([*groups, *own(results, SHARED).values()], results.scale.seeds)


def tie(results: Results) -> Verdict:
    """On each task, with each method at its own best rate: the worst method scores at most 2 % of
    the best score less than the best, and it scores more than the base without an adapter, both
    by more than the noise floor."""
    parts = []
    for task in TASKS:
        scores, base = own(results, task), results.scores(cell(task, "base"))
        noise = floor_of(results, [at(task, method) for method in METHODS])
        best, worst = ends(scores)
        name = f"{task}: {NAMES[worst]}, the worst"
        learned = effect(f"{name}, minus the base", scores[worst], base, noise)
        apart = effect(f"{name}, minus {NAMES[best]}, the best", scores[worst], scores[best], noise)
        parts += [larger([learned]), no_worse([apart], MARGIN * float(scores[best].mean()))]
    return together(*parts)


def spreads(results: Results) -> Verdict:
    """On mini-e2e, at each of the three rates that all searches begin with, the best and the worst
    method are further apart than the best and the worst at their own best rates, by more than the
    noise floor."""
    tuned = own(results, SHARED)
    best, worst = ends(tuned)
    effects = []
    for rate in rates(results):
        scores = shared(results, rate)
        top, last = ends(scores)
        what = (f"rate {rate:g} for all: {NAMES[top]} minus {NAMES[last]}, less what is between "
                f"{NAMES[best]} and {NAMES[worst]} at their own rates")
        effects.append(effect(what, scores[top] - scores[last], tuned[best] - tuned[worst],
                              floor(results)))
    return larger(effects)


def artefact(results: Results) -> Verdict:
    """On mini-e2e, two of the three shared rates have different winners, and at each of the two its
    own winner scores more than the other one, by more than the noise floor. If one method wins
    against every other at all three rates, by more than the noise floor, it is no artefact."""
    noise = floor(results)
    scores = {rate: shared(results, rate) for rate in rates(results)}
    winner = {rate: ends(scores[rate])[0] for rate in scores}

    def ahead(rate: float, a: str, b: str) -> Effect:
        what = f"rate {rate:g} for all: {NAMES[a]} minus {NAMES[b]}"
        return effect(what, scores[rate][a], scores[rate][b], noise)

    pairs = [
        larger([ahead(i, winner[i], winner[j]), ahead(j, winner[j], winner[i])])
        for i, j in combinations(scores, 2) if winner[i] != winner[j]
    ]
    if pairs:
        return max(pairs, key=lambda verdict: min(e.mean for e in verdict.effects))
    one = next(iter(winner.values()))
    rivals = [ahead(rate, m, one) for rate in scores for m in METHODS if m != one]
    word = FAILS if all(e.mean < -e.floor for e in rivals) else UNDECIDED
    return Verdict(word, f"{NAMES[one]} is the best at every rate", tuple(rivals))


def tables(results: Results) -> list[Table]:
    tuned = [
        [task, *(f"{plus_minus(scores, 2)} at {results.rate(at(task, method)):g}"
                 for method, scores in own(results, task).items())] for task in TASKS
    ]
    rows = [[f"{rate:g}", *(plus_minus(x, 2) for x in shared(results, rate).values())]
            for rate in rates(results)]
    names = [NAMES[method] for method in METHODS]
    return [
        Table(f"The main score of each task, each method at its own best rate, r = {R}",
              ["task", *names], tuned),
        Table(f"BLEU on {SHARED}, at one rate for all", ["rate", *names], rows),
    ]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        scores = {rate: shared(results, rate) for rate in rates(results)}
        return viz.rank_sweep(
            {NAMES[m]: {rate: scores[rate][m].tolist() for rate in scores} for m in METHODS},
            title="One learning rate for all", xlabel="learning rate", ylabel="BLEU",
        )

    return [Figure("variants", draw, "BLEU of LoRA, rsLoRA, LoRA+, PiSSA and DoRA against the "
                   "learning rate, with bands over the seeds: the order changes with the rate")]


def _untrained(dropped: Cell) -> Cell:
    """Read the base in place of DoRA, as if DoRA had not been trained."""
    return cell(dropped.task, "base") if dropped.method == "dora" else dropped


EXPERIMENT = Experiment(
    name="variants", title="Do the variants of LoRA differ?",
    cells=(*CELLS, *(cell(task, "base") for task in TASKS)),
    every_rate=tuple((at(SHARED, method), START) for method in METHODS),
    tables=tables, figures=figures,
    claims=(
        Claim(
            "Each at its own best learning rate, the variants tie with LoRA.", "arXiv 2602.04998",
            "within 1 to 2 %", tie, "one is not trained",
        ),
        Claim(
            "At one learning rate for all, they are further apart.", "arXiv 2602.04998",
            "no number is taken from there", spreads, "all read from one",
        ),
        Claim(
            "Which of them wins at one learning rate depends on the rate.", "arXiv 2602.04998",
            "no number is taken from there", artefact, "all read from one",
        ),
    ),
    blunders={
        "one is not trained": lambda results: results.swapped(_untrained),
        "all read from one": lambda results: results.swapped(lambda c: at(c.task, "lora")),
    },
    toy=f"All on q and v, r = {R} and alpha = {R}, so rsLoRA differs from LoRA by a factor √r in "
        "the scale alone. LoRA+ has the rate of B 16 times that of A.",
)
