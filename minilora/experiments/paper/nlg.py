"""Table 3: does LoRA write better than adapters and prefixes of its size, by five metrics?"""

from __future__ import annotations

from ...data.tasks import TASKS as ALL
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
from ..quality import MARGIN, fewer, quality_table, unlearned
from ..results import Results

TASK = "mini-e2e"
BASE, FULL, TOP2, LORA = (
    cell(TASK, "base"), cell(TASK, "full"), cell(TASK, "fttop2"), cell(TASK, "lora", r=4))
RIVALS = (  # with at least as many parameters as LoRA
    cell(TASK, "adapter-l", r=8), cell(TASK, "adapter-h", r=4),
    cell(TASK, "prelayer", lp=16, li=0),
)
CELLS = (BASE, FULL, TOP2, *RIVALS, LORA)


def outperforms(results: Results) -> Verdict:
    """By each of BLEU, NIST, METEOR, ROUGE-L and CIDEr, LoRA scores more than the best of
    Adapter-L, Adapter-H and PreLayer, by more than the noise floor. It trains no more parameters
    than any of them."""
    effects = []
    for metric in ALL[TASK].metrics:
        scores = {x: results.scores(x, metric) for x in (*RIVALS, LORA)}
        rival = max(RIVALS, key=lambda x: scores[x].mean())
        what = f"{metric}: LoRA minus {rival.label()}, the best of the others"
        noise = floor_of(results, CELLS, metric=metric)
        effects.append(effect(what, scores[LORA], scores[rival], noise))
    return together(larger(effects), fewer(results, LORA, RIVALS))


def as_good_as_full(results: Results) -> Verdict:
    """By BLEU, LoRA is above the base, above an answer drawn blindly, and at most 2 points below
    full fine-tuning, each by more than the noise floor."""
    noise = floor_of(results, CELLS)
    lora, full, nothing = (*(results.scores(x) for x in (LORA, FULL)), unlearned(results, TASK))
    return together(
        larger([effect("LoRA minus the base or a blind answer", lora, nothing, noise)]),
        no_worse([effect("LoRA minus full fine-tuning", lora, full, noise)], MARGIN),
    )


def tables(results: Results) -> list[Table]:
    columns = [(TASK, metric) for metric in ALL[TASK].metrics]
    return [quality_table(results, "Mini-E2E", CELLS, columns, chance=True)]


EXPERIMENT = Experiment(
    name="nlg", title="Does LoRA write better than adapters and prefixes?",
    cells=CELLS, tables=tables, jobs=lambda results: [chance(TASK, results.scale)],
    toy=(
        "The decoder has 2 blocks, so that FT top 2 trains all of it but the embeddings and the "
        "last norm. The task asks for words and an order that are new to the base."
    ),
    claims=(
        Claim(
            "LoRA outperforms adapters and prefixes with as many or fewer trained parameters.",
            "§5.4, Table 3",
            "GPT-2 M, BLEU, NIST, METEOR, ROUGE-L, CIDEr: Adapter-L (11.09M) 68.9, 8.71, 46.1, "
            "71.3, 2.47; Adapter-H (11.09M) 67.3, 8.50, 46.0, 70.7, 2.44; PreLayer (0.35M) 69.7, "
            "8.81, 46.1, 71.4, 2.49; LoRA (0.35M) 70.4, 8.85, 46.8, 71.8, 2.53",
            outperforms, "B ascends",
        ),
        Claim(
            "LoRA is at least as good as full fine-tuning.", "Table 3",
            "BLEU, full fine-tuning and LoRA: GPT-2 M 68.2 and 70.4, GPT-2 L 68.5 and 70.4",
            as_good_as_full, "B frozen",
        ),
    ),
)
