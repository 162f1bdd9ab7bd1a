"""Figure 2 and Table 15: what does each method gain from more trained parameters?"""

from __future__ import annotations

import functools
from dataclasses import replace
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
    together,
)
from ..quality import best_of, margin, quality_table
from ..results import Results

TASKS = ("mini-sql", "mini-mnli")
RANKS, LENGTHS = (1, 4, 64), (1, 4, 16)
BASE = cell("", "base")
CURVES = {
    "full fine-tuning": (cell("", "full"),),
    "BitFit": (cell("", "bitfit"),),
    "PreEmbed": tuple(cell("", "preembed", lp=lp, li=0) for lp in LENGTHS),
    "PreLayer": tuple(cell("", "prelayer", lp=lp, li=0) for lp in LENGTHS),
    "Adapter-H": tuple(cell("", "adapter-h", r=r) for r in RANKS),
    "LoRA": tuple(cell("", "lora", r=r) for r in RANKS),
}
METHODS = (BASE, *(method for curve in CURVES.values() for method in curve))
SMALL = ("BitFit", "PreEmbed", "PreLayer", "Adapter-H")  # what LoRA is compared with


def floor(results: Results, task: str) -> float:
    return floor_of(results, [method.on(task) for method in METHODS])


def scales(results: Results) -> Verdict:
    """On both tasks, LoRA's largest r is at most 2 points of 100 below its best other r, and LoRA
    at its best scores more than the best of BitFit, PreEmbed, PreLayer and Adapter-H at any size,
    both by more than the noise floor."""
    verdicts = []
    for task in TASKS:
        *others, most = (x.on(task) for x in CURVES["LoRA"])
        peak, noise = best_of(results, others), floor(results, task)
        best = best_of(results, [*others, most])
        rival = best_of(results, [x.on(task) for name in SMALL for x in CURVES[name]])
        less, more = (
            effect(f"{task}: {a.label()} minus {b.label()}", results.scores(a), results.scores(b),
                   noise) for a, b in ((most, peak), (best, rival))
        )
        verdicts += [no_worse([less], margin(task)), larger([more])]
    return together(*verdicts)


def prefixes_drop(results: Results) -> Verdict:
    """On both tasks, PreEmbed and PreLayer with their most tokens score less than with their best
    smaller number, by more than the noise floor."""
    effects = []
    for task, name in product(TASKS, ("PreEmbed", "PreLayer")):
        *others, most = (x.on(task) for x in CURVES[name])
        peak, noise = best_of(results, others), floor(results, task)
        what = f"{task}: {peak.label()} minus {most.label()}"
        effects.append(effect(what, results.scores(peak), results.scores(most), noise))
    return larger(effects)


def same_length(results: Results) -> Results:
    """Plant a mistake: the number of tokens is ignored."""
    def other(x: Cell) -> Cell:
        own = dict(x.settings)
        own |= {"lp": LENGTHS[-1]} if "lp" in own else {}
        return replace(x, settings=tuple(sorted(own.items())))

    return results.swapped(other)


def tables(results: Results) -> list[Table]:
    return [quality_table(results, "Quality and trained parameters", METHODS,
                          [(task, "accuracy") for task in TASKS])]


def figures(results: Results) -> list[Figure]:
    def draw(task: str) -> Any:
        return viz.quality_vs_parameters(
            {name: {results.trained(x.on(task)): results.scores(x.on(task)).tolist()
                    for x in curve} for name, curve in CURVES.items()},
            title=task, ylabel="accuracy",
            levels={BASE.label(): float(results.scores(BASE.on(task)).mean())},
        )

    return [Figure(f"params-{task}", functools.partial(draw, task),
                   f"accuracy on {task} against the number of trained parameters, a curve for "
                   "each method, with bands over the seeds") for task in TASKS]


EXPERIMENT = Experiment(
    name="params", title="What does each method gain from more trained parameters?",
    cells=tuple(method.on(task) for method in METHODS for task in TASKS),
    tables=tables, figures=figures, blunders={"the number of tokens is ignored": same_length},
    toy=(
        "The base has 64 positions. Trained tokens take some of them, so at most 16 are tried; "
        "the paper tries up to 512 of 2048."
    ),
    claims=(
        Claim(
            "LoRA is more scalable: it loses nothing with more parameters, and its best is the "
            "best of the small methods.", "§5.5, Figure 2, Table 15",
            "GPT-3, WikiSQL and MNLI-m, the best of each at any size: PreEmbed 63.1, 88.6; "
            "PreLayer 70.1, 89.6; Adapter-H 73.2, 91.5; LoRA 74.1, 91.7; LoRA's largest, q and v "
            "at r = 64, 73.6, 91.4",
            scales, "B frozen",
        ),
        Claim(
            "Not all methods gain from more parameters: PreEmbed and PreLayer drop with many "
            "tokens.", "§5.5, Figure 2, Table 15",
            "GPT-3, WikiSQL and MNLI-m: PreEmbed 63.1, 88.6 with 256 + 8 tokens and 55.9, 85.8 "
            "with 512 + 8; PreLayer 70.1, 89.5 with 8 + 8 and 64.9, 87.9 with 64",
            prefixes_drop, "the number of tokens is ignored",
        ),
    ),
)
