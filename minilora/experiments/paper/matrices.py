"""Table 5: which matrices of attention should LoRA adapt, at an equal number of parameters?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..cells import Cell, cell
from ..experiment import Claim, Experiment, Table, Verdict, effect, floor_of, larger
from ..quality import floor_of_means, mean_over, quality_table
from ..results import Results

TASKS = ("mini-sql", "mini-mnli")
BUDGET = 8  # the sum of the ranks in a block
CHOICES = {
    letters: cell("", "lora", r=BUDGET // len(letters), targets=tuple(letters))
    for letters in ("q", "k", "v", "o", "qk", "qv", "qkvo")
}


def compared(results: Results, better: str, others: Sequence[str]) -> Verdict:
    """Decide whether a choice scores more than each of the others, on both tasks."""
    effects = []
    for task in TASKS:
        noise = floor_of(results, [x.on(task) for x in CHOICES.values()])
        best = results.scores(CHOICES[better].on(task))
        effects += [
            effect(f"{task}: {says(better)} minus {says(other)}", best,
                   results.scores(CHOICES[other].on(task)), noise) for other in others
        ]
    return larger(effects)


def says(letters: str) -> str:
    return " + ".join(letters)


def query_and_value(results: Results) -> Verdict:
    """On both tasks, q + v scores more than q + k, than q alone and than k alone, each by more than
    the noise floor."""
    return compared(results, "qv", ("qk", "q", "k"))


def all_four(results: Results) -> Verdict:
    """By the mean over both tasks, q + k + v + o scores more than every other choice, by more than
    the noise floor."""
    means = {letters: mean_over(results, x, TASKS) for letters, x in CHOICES.items()}
    noise, best = floor_of_means(results, CHOICES.values(), TASKS), means.pop("qkvo")
    rival = max(means, key=lambda letters: float(np.mean(means[letters])))
    what = f"q + k + v + o minus {says(rival)}, the best of the others"
    return larger([effect(what, best, means[rival], noise)])


def query_and_key(results: Results) -> Verdict:
    """On both tasks, q + k scores more than the other pair, q + v, by more than the noise floor."""
    return compared(results, "qk", ("qv",))


def exchanged(results: Results) -> Results:
    """Plant a mistake: k and v are exchanged, as if a projection to q, k, v were split wrongly."""
    names = {letters: "".join(sorted(letters.translate(str.maketrans("kv", "vk")), key="qkvo".find))
             for letters in CHOICES}

    def other(x: Cell) -> Cell:
        letters = "".join(dict(x.settings)["targets"])
        return CHOICES[names[letters]].on(x.task)

    return results.swapped(other)


def ignored(results: Results) -> Results:
    """Plant a mistake: the choice is ignored, and q and v are adapted."""
    return results.swapped(lambda x: CHOICES["qv"].on(x.task))


def tables(results: Results) -> list[Table]:
    columns = [(task, "accuracy") for task in TASKS]
    return [quality_table(results, "Equal budgets", [*CHOICES.values()], columns, mean=True)]


EXPERIMENT = Experiment(
    name="matrices", title="Which matrices should LoRA adapt?",
    cells=tuple(x.on(task) for x in CHOICES.values() for task in TASKS), tables=tables,
    blunders={"k and v are exchanged": exchanged, "the choice is ignored": ignored},
    claims=(
        Claim(
            "q and v together are better than q and k together, and than q or k alone.",
            "§7.1, Table 5",
            "GPT-3, WikiSQL and MNLI at 18M parameters: q 70.4, 91.0; k 70.0, 90.8; v 73.0, 91.0; "
            "o 73.2, 91.3; q + k 71.4, 91.3; q + v 73.7, 91.3",
            query_and_value, "the choice is ignored",
        ),
        Claim(
            "All four matrices with a small r are better than fewer with a larger r.",
            "§7.1, Table 5",
            "GPT-3, WikiSQL and MNLI at 18M parameters: q + k + v + o 73.7, 91.7; the best other, "
            "q + v, 73.7, 91.3",
            all_four, "the choice is ignored",
        ),
        Claim(
            "Query and key are the best pair to adapt.",
            "the brief of this project; the paper says otherwise",
            "Table 5, WikiSQL and MNLI: q + k 71.4, 91.3; q + v 73.7, 91.3",
            query_and_key, "k and v are exchanged",
        ),
    ),
)
