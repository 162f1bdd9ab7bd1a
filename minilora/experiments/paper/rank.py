"""Table 6 and Table 18: how large does the rank r have to be?

Two tasks, because the answer depends on what the base knows: one asks for styles that the base has
learned, chosen by a new rule, the other for words and an order that are new to it.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import Any

from ... import viz
from ..cells import Cell, cell
from ..experiment import (
    Claim,
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
from ..results import Results

KNOWN, NEW = "mini-e2e-latent", "mini-e2e"
TASKS = {KNOWN: "styles that the base knows", NEW: "words and an order that are new"}
RANKS = (1, 2, 4, 8, 64)
TARGETS = (("q", "v"), ("q", "k", "v", "o"))
MARGIN = 2.0  # BLEU, in points: the ranks of Table 6 differ by about as little of their scores


def at(task: str, targets: tuple[str, ...], r: int) -> Cell:
    return cell(task, "lora", r=r, targets=targets)


CELLS = (
    *(at(*which) for which in product(TASKS, TARGETS, RANKS)), *(cell(t, "base") for t in TASKS)
)


def floor(results: Results, task: str, targets: tuple[str, ...]) -> float:
    return floor_of(results, [at(task, targets, r) for r in RANKS])


def small_rank_suffices(results: Results) -> Verdict:
    """On the task that the base knows, r = 4 on q and v scores more than the base without an
    adapter, and at most 2 BLEU less than r = 64, both by more than the noise floor."""
    four, most = (results.scores(at(KNOWN, ("q", "v"), r)) for r in (4, 64))
    base, noise = results.scores(cell(KNOWN, "base")), floor(results, KNOWN, ("q", "v"))
    return together(
        larger([effect("r = 4 minus the base", four, base, noise)]),
        no_worse([effect("r = 4 minus r = 64", four, most, noise)], MARGIN),
    )


def four_is_best(results: Results) -> Verdict:
    """On both tasks and for both choices of matrices, r = 4 scores more than every other rank, by
    more than the noise floor."""
    effects = []
    for task, targets in product(TASKS, TARGETS):
        scores = {r: results.scores(at(task, targets, r)) for r in RANKS}
        rival = max((r for r in RANKS if r != 4), key=lambda r: scores[r].mean())
        what = f"{task}, {' '.join(targets)}: r = 4 minus r = {rival}, the best of the others"
        effects.append(effect(what, scores[4], scores[rival], floor(results, task, targets)))
    return larger(effects)


def new_needs_more(results: Results) -> Verdict:
    """On the task that is new to the base, r = 64 on q and v scores more than r = 1, by more than
    the noise floor."""
    one, most = (results.scores(at(NEW, ("q", "v"), r)) for r in (1, 64))
    return larger([effect("r = 64 minus r = 1", most, one, floor(results, NEW, ("q", "v")))])


def tables(results: Results) -> list[Table]:
    return [
        Table(
            f"BLEU on {task}: {says}", ["matrices", *(f"r = {r}" for r in RANKS)],
            [[" ".join(targets), *(plus_minus(results.scores(at(task, targets, r)), 1)
                                   for r in RANKS)] for targets in TARGETS],
        )
        for task, says in TASKS.items()
    ]


def figures(results: Results) -> list[Figure]:
    def draw(task: str) -> Any:
        return viz.rank_sweep(
            {" ".join(targets): {r: results.scores(at(task, targets, r)).tolist() for r in RANKS}
             for targets in TARGETS},
            title=TASKS[task], ylabel="BLEU",
            levels={"the base": float(results.scores(cell(task, "base")).mean())},
        )

    return [Figure(f"rank-{task}", functools.partial(draw, task),
                   f"BLEU against the rank r, {says}, with bands over the seeds")
            for task, says in TASKS.items()]


EXPERIMENT = Experiment(
    name="rank", title="How large does r have to be?", cells=CELLS, tables=tables, figures=figures,
    claims=(
        Claim(
            "A very small rank suffices.", "§7.2, Table 6",
            "GPT-3, q and v, WikiSQL: 73.4, 73.3, 73.7, 73.8, 73.5 % for r = 1, 2, 4, 8, 64",
            small_rank_suffices, "B frozen",
        ),
        Claim(
            "The best rank is r = 4.", "the brief of this project; the paper does not say so",
            "Table 6: the best WikiSQL is r = 1 on q, k, v, o; the best MNLI r = 2 or 4",
            four_is_best, "",
        ),
        Claim(
            "What is new to the base needs a larger rank.", "footnote 6",
            "the paper expects it for a language that the base has not seen, and prints no number",
            new_needs_more, "B frozen",
        ),
    ),
)
