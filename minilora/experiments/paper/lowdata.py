"""Table 16: which method needs the fewest examples?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ... import viz
from ...data.tasks import TASKS
from ..cells import Cell, cell, chance
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
from ..quality import margin
from ..results import Results

TASK = "mini-mnli"
FEW, SOME, ALL = SIZES = (64, 512, None)  # training examples; None: all of the task
FULL, LORA = cell(TASK, "full"), cell(TASK, "lora", r=4)
PREFIXES = (cell(TASK, "preembed", lp=16, li=0), cell(TASK, "prelayer", lp=16, li=0))
METHODS = (FULL, *PREFIXES, LORA)


def at(method: Cell, n: int | None) -> Cell:
    return replace(method, examples=n)


def floor(results: Results, n: int | None) -> float:
    return floor_of(results, [at(method, n) for method in METHODS])


def better_than_prefixes(results: Results) -> Verdict:
    """With 64 examples, LoRA scores more than PreEmbed and than PreLayer, each by more than the
    noise floor."""
    lora, noise = results.scores(at(LORA, FEW)), floor(results, FEW)
    return larger([effect(f"LoRA minus {x.label()}", lora, results.scores(at(x, FEW)), noise)
                   for x in PREFIXES])


def as_good_as_full(results: Results) -> Verdict:
    """With 64 examples, LoRA is above chance and at most 2 points of 100 below full fine-tuning,
    both by more than the noise floor."""
    lora, full = (results.scores(at(x, FEW)) for x in (LORA, FULL))
    noise, blind = floor(results, FEW), np.full(len(lora), results.chance(TASK))
    return together(
        larger([effect("LoRA minus chance", lora, blind, noise)]),
        no_worse([effect("LoRA minus full fine-tuning", lora, full, noise)], margin(TASK)),
    )


def gap_shrinks(results: Results) -> Verdict:
    """LoRA's lead over PreEmbed and over PreLayer is larger with 64 examples than with all, each by
    more than the noise floor of such a difference."""
    noise = float(np.hypot(floor(results, FEW), floor(results, ALL)))
    effects = []
    for x in PREFIXES:
        few, every = (results.scores(at(LORA, n)) - results.scores(at(x, n)) for n in (FEW, ALL))
        what = f"LoRA's lead over {x.label()} with {FEW} examples minus that with all"
        effects.append(effect(what, few, every, noise))
    return larger(effects)


def exchanged(results: Results) -> Results:
    """Plant a mistake: the fewest examples and all are exchanged."""
    return results.swapped(lambda x: at(x, {FEW: ALL, ALL: FEW}.get(x.examples, x.examples)))


def size(n: int | None) -> int:
    return n or TASKS[TASK].sizes["train"]


def tables(results: Results) -> list[Table]:
    metric = TASKS[TASK].metrics[0]
    return [Table(
        f"Fewer examples of {TASK}",
        ["method", "trained parameters", *(f"{size(n):,} examples" for n in SIZES)],
        [[x.label(), f"{results.trained(x):,}",
          *(plus_minus(results.scores(at(x, n))) for n in SIZES)] for x in METHODS],
        note=f"{metric}; an answer drawn blindly scores {results.chance(TASK):.3f}.",
    )]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        return viz.rank_sweep(
            {x.label(): {size(n): results.scores(at(x, n)).tolist() for n in SIZES}
             for x in METHODS},
            title=TASK, xlabel="training examples", ylabel="accuracy",
            levels={"chance": results.chance(TASK)},
        )

    return [Figure("lowdata", draw, f"accuracy on {TASK} against the number of training examples, "
                   "a line for each method, with bands over the seeds")]


EXPERIMENT = Experiment(
    name="lowdata", title="Which method needs the fewest examples?",
    cells=tuple(at(method, n) for method in METHODS for n in SIZES),
    jobs=lambda results: [chance(TASK, results.scale)], tables=tables, figures=figures,
    blunders={"the fewest examples and all are exchanged": exchanged},
    toy=(
        "Every seed trains on the same examples, so the noise floor does not include which ones "
        "are drawn. The number of updates is the same for every number of examples."
    ),
    claims=(
        Claim(
            "With few examples LoRA is better than PreEmbed and PreLayer.", "App. F.3, Table 16",
            "GPT-3, MNLI with 100 examples: PreEmbed 37.6, PreLayer 48.3, LoRA 63.8",
            better_than_prefixes, "answers shuffled",
        ),
        Claim(
            "With few examples LoRA is at least as good as full fine-tuning.",
            "App. F.3, Table 16",
            "GPT-3, MNLI, full fine-tuning and LoRA: 60.2 and 63.8 with 100 examples, 85.8 and "
            "85.6 with 1k, 88.9 and 89.2 with 10k, 89.5 and 91.7 with 392k",
            as_good_as_full, "B frozen",
        ),
        Claim(
            "The lead of LoRA over prefixes becomes smaller with more examples.",
            "App. F.3, Table 16",
            "GPT-3, MNLI, LoRA minus PreEmbed and minus PreLayer: 26.2 and 15.5 with 100 "
            "examples, 2.1 and 2.1 with 392k (from the table)",
            gap_shrinks, "the fewest examples and all are exchanged",
        ),
    ),
)
