"""Attention, the MLP, or all linear layers, with equally many trained parameters.

The paper adapts attention alone (§4.2). Schulman et al. 2025 report that this is worse than the MLP
alone, with as many parameters. With width d, a layer has 8 d r parameters on q, k, v, o and 10 d r
on up and down, so that ranks 10 and 8 have equally many, and half of each has as many again.
"""

from __future__ import annotations

from typing import Any

from .. import statistics
from ..cells import Cell, cell
from ..experiment import (
    Claim,
    Experiment,
    Table,
    Verdict,
    effect,
    larger,
    no_worse,
    plus_minus,
    together,
)
from ..results import Results, Values

TASKS = ("mini-e2e", "mini-sql")
ATTENTION, MLP = ("q", "k", "v", "o"), ("up", "down")
PLACES = {  # the settings of each; all train 5,120 parameters in a layer of width 64
    "attention": {"r": 10, "targets": ATTENTION},
    "MLP": {"r": 8, "targets": MLP},
    "all linear": {"r": 5, "targets": (*ATTENTION, *MLP), "rank_pattern": {"up": 4, "down": 4}},
}
MARGIN = 0.05  # of ln loss: 5 % of the loss


def at(task: str, place: str) -> Cell:
    settings: dict[str, Any] = PLACES[place]
    return cell(task, "lora", **settings)


CELLS = (*(at(task, place) for task in TASKS for place in PLACES),
         *(cell(task, "base") for task in TASKS))


def losses(results: Results, task: str) -> tuple[dict[str, Values], float]:
    """Return (ln of the validation loss of each place, the noise floor of a difference)."""
    values = {place: results.log_losses(at(task, place)) for place in PLACES}
    return values, statistics.noise_floor([*values.values()], results.scale.seeds)


def lower(results: Results, place: str, than: str) -> Verdict:
    """Decide whether the loss of one place is lower than that of another, on every task."""
    effects = []
    for task in TASKS:
        values, noise = losses(results, task)
        what = f"{task}: ln loss of {than} minus that of {place}"
        effects.append(effect(what, values[than], values[place], noise))
    return larger(effects)


def mlp_over_attention(results: Results) -> Verdict:
    """On each task, the MLP alone has a lower validation loss than attention alone: the difference
    of ln loss is more than the noise floor."""
    return lower(results, "MLP", "attention")


def all_over_attention(results: Results) -> Verdict:
    """On each task, all linear layers have a lower validation loss than attention alone: the
    difference of ln loss is more than the noise floor."""
    return lower(results, "all linear", "attention")


def attention_adds_nothing(results: Results) -> Verdict:
    """On each task, the MLP alone has a loss that is at most 5 % above that of all linear layers
    (ln loss 0.05), and below that of the base without an adapter, both by more than the noise
    floor."""
    parts = []
    for task in TASKS:
        values, noise = losses(results, task)
        base = results.log_losses(cell(task, "base"))
        parts += [
            larger([effect(f"{task}: ln loss of the base minus the MLP's", base, values["MLP"],
                           noise)]),
            no_worse([effect(f"{task}: ln loss of all linear layers minus the MLP's",
                             values["all linear"], values["MLP"], noise)], MARGIN),
        ]
    return together(*parts)


def tables(results: Results) -> list[Table]:
    return [
        Table(
            f"{task}, at equal numbers of parameters",
            ["adapted", "r", "trained", "rate", "validation loss", "score"],
            [[place, "5 and 4" if "rank_pattern" in settings else settings["r"],
              f"{results.trained(at(task, place)):,}", f"{results.rate(at(task, place)):g}",
              plus_minus(results.values(at(task, place), "loss", "validation"), 4),
              plus_minus(results.scores(at(task, place)), 2)]
             for place, settings in PLACES.items()],
        )
        for task in TASKS
    ]


def _in_attention(other: Cell) -> Cell:
    """Read the runs of attention, as if the targets had no effect."""
    return other if other.untrained else at(other.task, "attention")


EXPERIMENT = Experiment(
    name="where", title="Attention, the MLP, or all linear layers?", cells=CELLS, tables=tables,
    claims=(
        Claim(
            "With equally many parameters, adapters on the MLP alone are better than on attention "
            "alone.",
            "Schulman et al. 2025, LoRA Without Regret",
            "attention with r = 256 is worse than the MLP with r = 128, which has about as many "
            "parameters",
            mlp_over_attention, "the targets have no effect",
        ),
        Claim(
            "With equally many parameters, adapters on all linear layers are better than on "
            "attention alone.",
            "Schulman et al. 2025, LoRA Without Regret", "no number is taken from there",
            all_over_attention, "the targets have no effect",
        ),
        Claim(
            "Beside the MLP, adapters on attention add nothing.",
            "Schulman et al. 2025, LoRA Without Regret",
            "no number; here at an equal number of parameters", attention_adds_nothing,
            "nothing is trained",
        ),
    ),
    blunders={
        "the targets have no effect": lambda results: results.swapped(_in_attention),
        "nothing is trained": lambda results: results.swapped(
            lambda c: cell(c.task, "base") if c == at(c.task, "MLP") else c),
    },
    on_validation=True,
    toy="The losses are those of the validation examples, by which the rates were chosen, too.",
)
