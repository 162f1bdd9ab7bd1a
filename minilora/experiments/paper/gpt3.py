"""Table 4: does LoRA match full fine-tuning on queries, inference and summaries?"""

from __future__ import annotations

from ..cells import cell, chance
from ..experiment import (
    Claim,
    Experiment,
    Table,
    Verdict,
    effect,
    floor_of,
    larger,
    no_worse,
    together,
)
from ..quality import best_of, margin, quality_table, unlearned
from ..results import Results

COLUMNS = (
    ("mini-sql", "accuracy"), ("mini-mnli", "accuracy"), ("mini-samsum", "rouge_1"),
    ("mini-samsum", "rouge_2"), ("mini-samsum", "rouge_l"),
)
TASKS = tuple(dict.fromkeys(task for task, _ in COLUMNS))
BASE, FULL, LORA = cell("", "base"), cell("", "full"), cell("", "lora", r=4)
RIVALS = (
    cell("", "bitfit"), cell("", "preembed", lp=16, li=0), cell("", "prelayer", lp=16, li=0),
    cell("", "adapter-h", r=4),
)
METHODS = (BASE, FULL, *RIVALS, LORA)


def floor(results: Results, task: str) -> float:
    return floor_of(results, [method.on(task) for method in METHODS])


def matches_full(results: Results) -> Verdict:
    """On each of the three tasks, by its main metric, LoRA is above the base, above an answer drawn
    blindly, and at most 2 points of 100 below full fine-tuning, each by more than the noise
    floor."""
    verdicts = []
    for task in TASKS:
        lora, full = (results.scores(x.on(task)) for x in (LORA, FULL))
        nothing, noise = unlearned(results, task), floor(results, task)
        more = effect(f"{task}: LoRA minus the base or a blind answer", lora, nothing, noise)
        less = effect(f"{task}: LoRA minus full fine-tuning", lora, full, noise)
        verdicts += [larger([more]), no_worse([less], margin(task))]
    return together(*verdicts)


def best_of_the_small(results: Results) -> Verdict:
    """On each of the three tasks, by its main metric, LoRA scores more than the best of BitFit,
    PreEmbed, PreLayer and Adapter-H, by more than the noise floor."""
    effects = []
    for task in TASKS:
        rival = best_of(results, [x.on(task) for x in RIVALS])
        what = f"{task}: LoRA minus {rival.label()}, the best of the others"
        lora, other = results.scores(LORA.on(task)), results.scores(rival)
        effects.append(effect(what, lora, other, floor(results, task)))
    return larger(effects)


def tables(results: Results) -> list[Table]:
    return [quality_table(results, "Three tasks of a decoder", METHODS, COLUMNS, chance=True)]


EXPERIMENT = Experiment(
    name="gpt3", title="Does LoRA match full fine-tuning on three tasks of a decoder?",
    cells=tuple(method.on(task) for method in METHODS for task in TASKS), tables=tables,
    jobs=lambda results: [chance(task, results.scale) for task in TASKS],
    toy="A decoder of 2 blocks stands for GPT-3, which has 96 blocks, each 192 times as wide.",
    claims=(
        Claim(
            "LoRA matches or exceeds full fine-tuning on all three tasks.", "§5.5, Table 4",
            "GPT-3, WikiSQL, MNLI-m, SAMSum R1/R2/RL: full fine-tuning (175,255.8M) 73.8, 89.5, "
            "52.0/28.0/44.5; LoRA (4.7M) 73.4, 91.7, 53.8/29.8/45.9; LoRA (37.7M) 74.0, 91.6, "
            "53.4/29.2/45.1",
            matches_full, "B frozen",
        ),
        Claim(
            "LoRA is better than BitFit, PreEmbed, PreLayer and Adapter-H.", "Table 4",
            "GPT-3, WikiSQL, MNLI-m, SAMSum R1: BitFit (14.2M) 71.3, 91.0, 51.3; PreEmbed (3.2M) "
            "63.1, 88.6, 48.3; PreLayer (20.2M) 70.1, 89.5, 50.8; Adapter-H (7.1M) 71.9, 89.8, "
            "53.0 and (40.1M) 73.2, 91.5, 53.2; LoRA (4.7M) 73.4, 91.7, 53.8",
            best_of_the_small, "B frozen",
        ),
    ),
)
