"""Table 2: is LoRA as good as full fine-tuning of an encoder, on five tasks after GLUE?"""

from __future__ import annotations

from typing import Any

from ... import viz
from ..cells import cell, chance
from ..experiment import (
    Claim,
    Experiment,
    Figure,
    Table,
    Verdict,
    effect,
    larger,
    no_worse,
    together,
)
from ..quality import MARGIN, fewer, floor_of_means, mean_over, quality_table
from ..results import Results

COLUMNS = (
    ("mini-cola", "matthews"), ("mini-sst", "accuracy"), ("mini-mrpc", "accuracy"),
    ("mini-stsb", "pearson"), ("mini-rte", "accuracy"),
)
TASKS = tuple(task for task, _ in COLUMNS)
PROBE, FULL, LORA = cell("", "probe"), cell("", "full"), cell("", "lora", r=4)
BASELINES = (  # the adapters with about as many parameters as LoRA
    cell("", "bitfit"), cell("", "adapter-h", r=4), cell("", "adapter-p", r=8),
    cell("", "adapter-d", r=16),
)
METHODS = (PROBE, FULL, *BASELINES, LORA)
TIMES = 20  # "far fewer" parameters: at most one in 20


def floor(results: Results) -> float:
    return floor_of_means(results, METHODS, TASKS)


def about_equal(results: Results) -> Verdict:
    """By the mean over the five tasks, LoRA is at most 2 points of 100 below full fine-tuning, and
    above the head alone, both by more than the noise floor. It trains at most one parameter for
    every 20 of full fine-tuning."""
    full, lora, probe = (mean_over(results, x, TASKS) for x in (FULL, LORA, PROBE))
    noise = floor(results)
    return together(
        larger([effect("LoRA minus the head alone", lora, probe, noise)]),
        no_worse([effect("LoRA minus full fine-tuning", lora, full, noise)], MARGIN / 100),
        fewer(results, LORA.on(TASKS[0]), [FULL.on(TASKS[0])], TIMES),
    )


def better_than_others(results: Results) -> Verdict:
    """By the mean over the five tasks, LoRA scores more than BitFit and than each adapter, by more
    than the noise floor."""
    lora, noise = mean_over(results, LORA, TASKS), floor(results)
    return larger([
        effect(f"LoRA minus {x.label()}", lora, mean_over(results, x, TASKS), noise)
        for x in BASELINES
    ])


def tables(results: Results) -> list[Table]:
    return [quality_table(
        results, "Mini-GLUE", METHODS, COLUMNS, mean=True, chance=True,
        note="The head is not among the trained parameters: every method trains it in full.",
    )]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        return viz.quality_vs_parameters(
            {x.label(): {results.trained(x.on(TASKS[0])): mean_over(results, x, TASKS).tolist()}
             for x in METHODS if x != PROBE},
            title="Mini-GLUE", ylabel="mean over five tasks",
            levels={PROBE.label(): float(mean_over(results, PROBE, TASKS).mean())},
        )

    return [Figure("glue", draw, "the mean score over five tasks against the number of trained "
                   "parameters, one point for each method")]


EXPERIMENT = Experiment(
    name="glue", title="Is LoRA as good as full fine-tuning of an encoder?",
    cells=tuple(method.on(task) for method in METHODS for task in TASKS),
    jobs=lambda results: [chance(task, results.scale) for task in TASKS],
    tables=tables, figures=figures,
    toy=(
        "An encoder of 2 blocks and five tasks over a made-up world. Its head is larger than an "
        "adapter, and is trained in full by every method, so the head alone is the floor."
    ),
    claims=(
        Claim(
            "LoRA is about equal to full fine-tuning, with far fewer trained parameters.",
            "§5.2, §5.3, Table 2",
            "mean over 8 tasks, full fine-tuning and LoRA: RoBERTa base 86.4 (125.0M) and 87.2 "
            "(0.3M); RoBERTa large 88.9 (355.0M) and 89.0 (0.8M); DeBERTa XXL 91.1 (1500.0M) and "
            "91.3 (4.7M)",
            about_equal, "B frozen",
        ),
        Claim(
            "LoRA is better than BitFit and adapters.", "Table 2",
            "RoBERTa base: BitFit 85.2, Adapter-D 84.4 (0.3M) and 85.4 (0.9M), LoRA 87.2 (0.3M); "
            "RoBERTa large, the same set-up for all: Adapter-P 88.4 (3.0M) and 87.9 (0.8M), "
            "Adapter-H 87.8 (6.0M) and 86.4 (0.8M), LoRA 88.6 (0.8M)",
            better_than_others, "B frozen",
        ),
    ),
)
