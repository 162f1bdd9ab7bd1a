"""B matters more than A (arXiv 2402.16842): each is trained alone, the other stays random.

"B alone": A is random and frozen, as LoRA draws it. "A alone": B is random and frozen, and A starts
at 0, so that the model starts as the base. B alone with rank 2r has LoRA's number of parameters.
"""

from __future__ import annotations

from ..cells import Cell, cell
from ..experiment import (
    Claim,
    Experiment,
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

TASKS = ("mini-e2e", "mini-sql")
R = 4
MARGIN = 0.05  # of LoRA's score: what "nearly" and "no worse" may lose

KINDS = {"A and B": ("", R), "B alone": ("B alone", R), "A alone": ("A alone", R),
         "B alone, 2r": ("B alone", 2 * R)}


def at(task: str, kind: str) -> Cell:
    variation, r = KINDS[kind]
    return cell(task, "lora", variation=variation, r=r)


CELLS = (*(at(task, kind) for task in TASKS for kind in KINDS),
         *(cell(task, "base") for task in TASKS))


def floor(results: Results, task: str) -> float:
    return floor_of(results, [at(task, kind) for kind in KINDS])


def B_over_A(results: Results) -> Verdict:
    """On each task, B alone scores more than A alone with the same rank, by more than the noise
    floor."""
    return larger([
        effect(f"{task}: B alone minus A alone", results.scores(at(task, "B alone")),
               results.scores(at(task, "A alone")), floor(results, task))
        for task in TASKS
    ])


def nearly(results: Results, kind: str) -> Verdict:
    """Decide whether a kind scores at most MARGIN less than LoRA, and more than the base."""
    parts = []
    for task in TASKS:
        both, own = results.scores(at(task, "A and B")), results.scores(at(task, kind))
        base, noise = results.scores(cell(task, "base")), floor(results, task)
        parts += [
            larger([effect(f"{task}: {kind} minus the base", own, base, noise)]),
            no_worse([effect(f"{task}: {kind} minus A and B", own, both, noise)],
                     MARGIN * float(both.mean())),
        ]
    return together(*parts)


def random_A_is_enough(results: Results) -> Verdict:
    """On each task, B alone scores more than the base without an adapter, and at most 5 % of LoRA's
    score less than LoRA with the same rank, both by more than the noise floor."""
    return nearly(results, "B alone")


def equal_parameters(results: Results) -> Verdict:
    """On each task, B alone with rank 2r scores more than the base without an adapter, and at most
    5 % of LoRA's score less than LoRA with rank r and as many parameters, both by more than the
    noise floor."""
    return nearly(results, "B alone, 2r")


def tables(results: Results) -> list[Table]:
    rows = []
    for kind, (_, r) in KINDS.items():
        row = [kind, r, f"{results.trained(at(TASKS[0], kind)):,}"]
        for task in TASKS:
            row += [plus_minus(results.scores(at(task, kind)), 2),
                    plus_minus(results.values(at(task, kind), "loss", "validation"), 3)]
        rows.append(row)
    head = [text for task in TASKS for text in (f"{task}: score", f"{task}: validation loss")]
    return [Table("LoRA on q and v, with one factor trained alone",
                  ["trained", "r", "parameters", *head], rows)]


def _exchanged(given: Cell) -> Cell:
    """Read B alone in place of A alone, and the other way round, where both have the same rank."""
    other = {"A alone": "B alone", "B alone": "A alone"}
    same = dict(given.settings).get("r") == R
    return given.varied(other.get(given.variation, given.variation)) if same else given


def _nothing(given: Cell) -> Cell:
    """Read the base where one factor is frozen, as if the other were frozen, too."""
    return cell(given.task, "base") if given.variation else given


EXPERIMENT = Experiment(
    name="asymmetry", title="Does B matter more than A?", cells=CELLS, tables=tables,
    claims=(
        Claim("Training B alone is better than training A alone.", "arXiv 2402.16842",
              "no number is taken from there", B_over_A, "A and B exchanged"),
        Claim("A random A that is not trained is nearly as good as a trained one.",
              "arXiv 2402.16842", "no number is taken from there", random_A_is_enough,
              "both are frozen"),
        Claim("At an equal number of parameters, B alone is as good as A and B.",
              "arXiv 2402.16842", "no number is taken from there", equal_parameters,
              "both are frozen"),
    ),
    blunders={
        "A and B exchanged": lambda results: results.swapped(_exchanged),
        "both are frozen": lambda results: results.swapped(_nothing),
    },
)
