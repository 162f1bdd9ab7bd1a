"""The facts of an experiment's page, in JSON's terms: Markdown and HTML are made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import setup
from .experiment import Experiment, Figure, Verdict
from .order import NAMES
from .results import Results
from .training import ROUND
from .variations import VARIATIONS

SMOKE = "This is a smoke run of a few steps. It shows that all works, and gives no verdict."
TOY = "Toy scale, synthetic data."
REAL = "One experiment, real, has a real encoder and real sentences."


def facts(experiment: Experiment, results: Results) -> tuple[dict[str, Any], list[Figure]]:
    """Return the facts of an experiment's page, and its figures, which are not drawn yet."""
    verdicts, figures = experiment.verdicts(results), experiment.figures(results)
    prefix = f"{experiment.name}-"
    figures = [
        Figure(prefix + figure.name.removeprefix(prefix), figure.draw, figure.alt)
        for figure in figures
    ]
    page = {
        "name": experiment.name, "title": experiment.title, "where": NAMES[experiment.name],
        "smoke": results.scale.fast, "seeds": results.scale.seeds,
        "models": setup.models(experiment, results), "toy": experiment.toy,
        "claims": [
            _claim(claim, verdict, experiment, results)
            for claim, verdict in zip(experiment.claims, verdicts, strict=True)
        ],
        "noise": experiment.noise,
        "tables": [
            {"title": table.title, "head": [*table.head], "rows": [[*row] for row in table.rows],
             "note": table.note}
            for table in experiment.tables(results)
        ],
        "figures": [],
        "rates": setup.rates(experiment, results),
        "questions": setup.questions(experiment, results),
    }
    result: dict[str, Any] = plain(page)
    return result, figures


def _claim(
    claim: Any, verdict: Verdict, experiment: Experiment, results: Results
) -> dict[str, Any]:
    facts = {
        "says": claim.says, "source": claim.source, "printed": claim.printed or "nothing",
        "rule": claim.rule_in_words, "verdict": verdict.word, "because": verdict.because,
        "effects": [
            {"what": e.what, "mean": e.mean, "low": e.low, "high": e.high, "floor": e.floor}
            for e in verdict.effects
        ],
        "mistake": "", "under_mistake": "",
    }
    if claim.mistake:
        facts["mistake"] = in_words(claim.mistake)
        if not results.scale.fast:
            facts["under_mistake"] = claim.rule(mistaken(experiment, claim.mistake, results)).word
    return facts


def in_words(mistake: str) -> str:
    """Return what a mistake is: a variation's description, or a blunder's name."""
    return VARIATIONS[mistake].says if mistake in VARIATIONS else mistake


def mistaken(experiment: Experiment, mistake: str, results: Results) -> Results:
    """Return the results under a planted mistake."""
    if mistake in experiment.blunders:
        return experiment.blunders[mistake](results)
    return Results(results.journal, results.scale, mistake)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: numbers of ROUND digits, None for one that is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(x) for name, x in value.items()}
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return [plain(x) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{ROUND}g}") if math.isfinite(value) else None
    return value
