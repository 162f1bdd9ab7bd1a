"""LoRA learns less and forgets less (arXiv 2405.09673): is that one curve, or two?

Learned: the loss on the task. Forgotten: the loss on the base's own text. Who learns less forgets
less, whatever the method. So full fine-tuning also runs at lower rates: its curve says what it
would have forgotten at LoRA's loss on the task.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ... import viz
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
    effect,
    larger,
    plus_minus,
)
from ..results import DIVERGED, Results, Values, validation_loss

BASE, FULL, LORA = cell("", "base"), cell("", "full"), cell("", "lora", r=4)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of full fine-tuning; those above its best one do not count
ONLY = "at its best rate"
RANKS = (1, 4, 64)
RANKED = {f"r = {r}": cell("", "lora", r=r) for r in RANKS}
POINTS: Mapping[str, Mapping[str, Mapping[str, Cell]]] = {  # task -> method -> setting -> cell
    "mini-e2e": {
        "full fine-tuning": {ONLY: FULL}, "FT top 2": {"": cell("", "fttop2")},
        "Adapter-L": {"r = 8": cell("", "adapter-l", r=8)},
        "Adapter-H": {"r = 4": cell("", "adapter-h", r=4)},
        "PreLayer": {"16 tokens": cell("", "prelayer", lp=16, li=0)}, "LoRA": RANKED,
    },
    "mini-sql": {
        "full fine-tuning": {ONLY: FULL}, "BitFit": {"": cell("", "bitfit")},
        "Adapter-H": {f"r = {r}": cell("", "adapter-h", r=r) for r in RANKS},
        "PreEmbed": {"16 tokens": cell("", "preembed", lp=16, li=0)},
        "PreLayer": {"16 tokens": cell("", "prelayer", lp=16, li=0)}, "LoRA": RANKED,
    },
}
TASKS = tuple(POINTS)


def cells(task: str) -> list[Cell]:
    """Return all trained cells of a task."""
    return [one.on(task) for settings in POINTS[task].values() for one in settings.values()]


def forgotten(results: Results, which: Cell) -> Values:
    """Return ln of the loss on the base's own text, of each seed."""
    return np.log([_base_loss(run) for run in results.runs(which)])


def _base_loss(run: Any) -> float:
    return float(run.get("base_loss", DIVERGED))


def floors(results: Results, task: str) -> tuple[float, float]:
    """Return the noise floors of what is learned and of what is forgotten."""
    pairs = [(results.log_losses(one), forgotten(results, one)) for one in cells(task)]
    learned, lost = (statistics.noise_floor(x, results.scale.seeds) for x in zip(*pairs))
    return learned, lost


def learned(results: Results, task: str, noise: float) -> Effect:
    """Return how much lower LoRA's loss on the task is than that of the base."""
    base, own = (results.log_losses(x.on(task)) for x in (BASE, LORA))
    return effect(f"{task}: ln loss on the task, the base minus LoRA", base, own, noise)


def learns_less(results: Results) -> Verdict:
    """On each task, ln loss on the task of LoRA (r = 4 on q and v) is above that of full
    fine-tuning and below that of the base without an adapter, both by more than the noise floor."""
    effects = []
    for task in TASKS:
        noise, _ = floors(results, task)
        own, full = (results.log_losses(x.on(task)) for x in (LORA, FULL))
        effects += [effect(f"{task}: ln loss on the task, LoRA minus full", own, full, noise),
                    learned(results, task, noise)]
    return larger(effects)


def forgets_less(results: Results) -> Verdict:
    """On each task, ln loss on the base's own text is lower after LoRA (r = 4 on q and v) than
    after full fine-tuning, and LoRA's ln loss on the task is below that of the base without an
    adapter, both by more than the noise floor."""
    effects = []
    for task in TASKS:
        noise, lost = floors(results, task)
        own, full = (forgotten(results, x.on(task)) for x in (LORA, FULL))
        effects += [effect(f"{task}: ln loss on the base's text, full minus LoRA", full, own, lost),
                    learned(results, task, noise)]
    return larger(effects)


def curve(results: Results, task: str) -> dict[float, list[tuple[float, float]]]:
    """Return rate -> (ln loss on the task, ln loss on the base's text) of each seed, for full
    fine-tuning at its best rate and at the lower ones of RATES."""
    full, seeds = FULL.on(task), range(results.scale.seeds)
    best = results.rate(full)
    rates = sorted({best, *(x for x in results.scale.rates(RATES) if x < best)})
    runs = {rate: [results.at(full, rate, seed) for seed in seeds] for rate in rates}
    return {rate: [(float(np.log(validation_loss(x))), float(np.log(_base_loss(x)))) for x in own]
            for rate, own in runs.items()}


def below(results: Results, task: str, r: int) -> Values | None:
    """Return how far LoRA's point is below the curve of full fine-tuning with the same seed: the
    difference of ln loss on the base's text at LoRA's loss on the task. None if full fine-tuning
    has no such loss on the task at any rate."""
    one, points = RANKED[f"r = {r}"].on(task), curve(results, task).values()
    differences = []
    for seed, (x, y) in enumerate(zip(results.log_losses(one), forgotten(results, one))):
        at, lost = zip(*sorted(own[seed] for own in points))
        if not at[0] <= x <= at[-1]:
            return None
        differences.append(np.interp(x, at, lost) - y)
    return np.array(differences)


def two_curves(results: Results) -> Verdict:
    """On each task, for each of LoRA's ranks whose loss on the task full fine-tuning has at some of
    its rates: LoRA's ln loss on the base's text is below what full fine-tuning has there, between
    its rates, by more than the noise floor of this difference. Without such a rank: undecided."""
    effects = []
    for task in TASKS:
        found = {r: below(results, task, r) for r in RANKS}
        known = {r: values for r, values in found.items() if values is not None}
        if not known:
            return Verdict(UNDECIDED, f"{task}: at no rate has full fine-tuning LoRA's loss on the "
                                      "task, so nothing can be compared")
        noise = statistics.noise_floor([*known.values()], results.scale.seeds)
        effects += [effect(f"{task}: ln loss on the base's text at the loss of LoRA r = {r}, full "
                           "minus LoRA", values, 0 * values, noise)
                    for r, values in known.items()]
    return larger(effects)


def tables(results: Results) -> list[Table]:
    result = []
    for task in TASKS:
        base = BASE.on(task)
        rows = [["the base", "", *_losses(results, base)]]
        rows += [[method, setting, *_losses(results, one.on(task))]
                 for method, settings in POINTS[task].items() for setting, one in settings.items()]
        for rate, own in curve(results, task).items():
            x, y = np.exp(own).T
            rows.append(["full fine-tuning", f"rate {rate:g}", plus_minus(x), plus_minus(y)])
        head = ["method", "setting", "loss on the task", "loss on the base's text"]
        result.append(Table(f"Learned and forgotten: {task}", head, rows))
    return result


def _losses(results: Results, one: Cell) -> list[str]:
    return [plus_minus(np.exp(x)) for x in (results.log_losses(one), forgotten(results, one))]


def figures(results: Results) -> list[Figure]:
    def draw(task: str) -> Any:
        def point(one: Cell) -> tuple[list[float], list[float]]:
            return (np.exp(results.log_losses(one)).tolist(),
                    np.exp(forgotten(results, one)).tolist())

        points = {method: {setting: point(one.on(task)) for setting, one in settings.items()}
                  for method, settings in POINTS[task].items()}
        points["full fine-tuning"] = {
            f"{rate:g}": (np.exp(own)[:, 0].tolist(), np.exp(own)[:, 1].tolist())
            for rate, own in curve(results, task).items()
        }
        (x, *_), (y, *_) = point(BASE.on(task))
        return viz.forgetting(
            points, title=task, base=(x, y), xlabel="loss on the task", log=True)

    return [Figure(f"forgetting-{task}", functools.partial(draw, task),
                   f"{task}: loss on the base's own text against loss on the task, a point for "
                   "each method and size; full fine-tuning at several rates is a line")
            for task in TASKS]


def _untrained(one: Cell) -> Cell:
    return BASE.on(one.task) if one.lora else one


def _unfrozen(one: Cell) -> Cell:
    return FULL.on(one.task) if one.lora else one


EXPERIMENT = Experiment(
    name="forgetting", title="Does LoRA learn less and forget less?",
    cells=tuple(x for task in TASKS for x in (BASE.on(task), *cells(task))),
    every_rate=tuple((FULL.on(task), RATES) for task in TASKS),
    tables=tables, figures=figures,
    claims=(
        Claim("LoRA learns less than full fine-tuning.", "arXiv 2405.09673",
              "no number is taken from there", learns_less, "nothing is trained"),
        Claim("LoRA forgets less than full fine-tuning.", "arXiv 2405.09673",
              "no number is taken from there", forgets_less, "nothing is trained"),
        Claim("LoRA forgets less than full fine-tuning that has learned as much: two curves, not "
              "one.", "arXiv 2405.09673 asks this", "no number is taken from there", two_curves,
              "the base is not frozen"),
    ),
    blunders={
        "nothing is trained": lambda results: results.swapped(_untrained),
        "the base is not frozen": lambda results: results.swapped(_unfrozen),
    },
    on_validation=True,
    toy="The losses are those of the validation examples and of held-out text of the base.",
)
