"""Table 7 (§7.3, H.4): how does ΔW relate to W?

U and V are the top r singular vectors of ΔW, and ‖Uᵀ W V‖_F is what W has in their directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import analysis
from ...backend import asnumpy
from ...data.tasks import TASKS
from ...jobs.driver import Job
from ...models.pretrained import load_base
from ..cells import Cell, cell
from ..experiment import Claim, Experiment, Table, Verdict, effect, larger, plus_minus
from ..readings import READ, TOPS
from ..results import Results
from ..statistics import noise_floor
from ..training import rounded

TASK = "mini-e2e"
FOUR, MOST = 4, TOPS[-1]
HALF = 0.5
DRAWS = 100


def at(r: int) -> Cell:
    return cell(TASK, "lora", r=r, targets=("q", "v"))


CELLS = tuple(at(r) for r in TOPS)


def own(base: str, ranks: Sequence[int], draws: int) -> dict[str, Any]:
    """Return of the last block's q and v: norm, and by r ‖Uᵀ W V‖_F for W's own and random U, V.

    random: the root of the mean square over the draws.
    """
    model, rng, result = load_base(base), np.random.default_rng(0), {}
    for name in READ:
        W = asnumpy(getattr(model.blocks[-1].attn, name).W.data).astype(np.float64)
        drawn = [analysis.random_like(W, rng) for _ in range(draws)]
        each = {r: [analysis.amplification(W, dW, r).in_update for dW in drawn] for r in ranks}
        result[name] = {
            "norm": float(np.linalg.norm(W)),
            "own": {str(r): analysis.amplification(W, W, r).in_own for r in ranks},
            "random": {str(r): math.sqrt(np.mean(np.square(x))) for r, x in each.items()},
        }
    return rounded(result)  # type: ignore[no-any-return]


def own_job() -> Job:
    config = {"base": TASKS[TASK].base, "ranks": list(TOPS), "draws": DRAWS}
    return Job("own", config, "what W has in its own and in random directions")


def inside(results: Results, name: str, r: int) -> np.ndarray:
    """Return ‖Uᵀ W V‖_F with the U, V of ΔW, for each seed."""
    return results.values(at(r), "updates", name, "inside", str(r))


def of_base(results: Results, name: str, what: str, r: int) -> float:
    """Return ‖Uᵀ W V‖_F with W's "own" U, V, or with "random" ones."""
    return float(results.job(own_job())[name][what][str(r)])


def log_factor(results: Results, name: str, r: int) -> np.ndarray:
    """Return log10 of the amplification factor ‖ΔW‖_F / ‖Uᵀ W V‖_F, for each seed."""
    norm = results.values(at(r), "updates", name, "norm")
    return np.asarray(np.log10(norm / inside(results, name, r)))


def floor(results: Results, measure: Callable[[Results, str, int], np.ndarray]) -> float:
    groups = [measure(results, "q", r) for r in TOPS]
    finite = [g[np.isfinite(g)] for g in groups if np.isfinite(g).any()]
    return noise_floor(finite, results.scale.seeds)


def more_than_random(results: Results) -> Verdict:
    """For q and r = 4, W has more in the directions of ΔW than in random ones, by more than the
    noise floor."""
    values = inside(results, "q", FOUR)
    chance = np.full_like(values, of_base(results, "q", "random", FOUR))
    return larger([effect("‖UᵀWV‖ minus random", values, chance, floor(results, inside))])


def not_emphasized(results: Results) -> Verdict:
    """For q and r = 4, W has less than half as much in the directions of ΔW as in its own top
    directions, by more than the noise floor."""
    values = inside(results, "q", FOUR)
    half = np.full_like(values, HALF * of_base(results, "q", "own", FOUR))
    return larger([effect("half of W's own minus ‖UᵀWV‖", half, values, floor(results, inside))])


def amplifies(results: Results) -> Verdict:
    """For q and r = 4, the factor ‖ΔW‖ / ‖UᵀWV‖ is above 1: its logarithm is above 0, by more than
    the noise floor."""
    values, noise = log_factor(results, "q", FOUR), floor(results, log_factor)
    return larger([effect("log10 of the factor", values, np.zeros_like(values), noise)])


def falls_with_r(results: Results) -> Verdict:
    """For q, the factor is larger with r = 4 than with r = 64, by the logarithm and by more than
    the noise floor."""
    few, most = (log_factor(results, "q", r) for r in (FOUR, MOST))
    noise = floor(results, log_factor)
    return larger([effect("log10 of the factor, r = 4 minus r = 64", few, most, noise)])


def tables(results: Results) -> list[Table]:
    return [
        Table(
            f"{name} of the last block, ‖W‖ = {results.job(own_job())[name]['norm']:.3g}",
            ["r", "‖ΔW‖", "‖UᵀWV‖, ΔW's U, V", "W's own", "random", "factor", "random factor"],
            [row(results, name, r) for r in TOPS],
            "random factor: ‖ΔW‖ over the random column, which is what an update of the same norm "
            "with random directions would have. It falls as 1 / r by itself",
        )
        for name in READ
    ]


def row(results: Results, name: str, r: int) -> list[Any]:
    norm, values = results.values(at(r), "updates", name, "norm"), inside(results, name, r)
    own, random = (of_base(results, name, what, r) for what in ("own", "random"))
    return [r, plus_minus(norm, 2), plus_minus(values, 2), f"{own:.2f}", f"{random:.2f}",
            plus_minus(norm / values, 2), plus_minus(norm / random, 2)]


def read_as(other: Callable[[str, Results], float]) -> Callable[[Results], Results]:
    """Plant a mistake: every run's ‖UᵀWV‖ is replaced, for each r by other(r, results)."""
    def planted(results: Results) -> Results:
        def change(job: Job, run: Any) -> Any:
            if job.kind != "train" or "updates" not in run:
                return run
            updates = {
                name: by | {"inside": {r: other(r, results) for r in by["inside"]}}
                for name, by in run["updates"].items()
            }
            return run | {"updates": updates}

        return results.changed(change)

    return planted


def of_own(what: str) -> Callable[[str, Results], float]:
    return lambda r, results: of_base(results, "q", what, int(r))


def inverted(results: Results) -> Results:
    """Plant a mistake: the factor is ‖UᵀWV‖ / ‖ΔW‖."""
    def change(job: Job, run: Any) -> Any:
        if job.kind != "train" or "updates" not in run:
            return run
        updates = {name: by | {"norm": 1.0, "inside": {r: by["norm"] / x
                                                       for r, x in by["inside"].items()}}
                   for name, by in run["updates"].items()}
        return run | {"updates": updates}

    return results.changed(change)


EXPERIMENT = Experiment(
    name="amplification", title="How does ΔW relate to W?", cells=CELLS, tables=tables,
    jobs=lambda results: [own_job()],
    claims=(
        Claim(
            "ΔW has a stronger correlation with W than a random matrix has.", "§7.3, Table 7",
            "r = 4: 0.32, random 0.02; r = 64: 1.90, random 0.33", more_than_random,
            "random directions for ΔW's",
        ),
        Claim(
            "ΔW does not repeat the top directions of W, but amplifies ones that W does not "
            "emphasize.", "§7.3, Table 7",
            "r = 4: 0.32, W's own 21.67; r = 64: 1.90, W's own 37.71", not_emphasized,
            "W's directions for ΔW's",
        ),
        Claim(
            "The amplification factor is large.", "§7.3",
            "r = 4: 21.5, which is 6.91 / 0.32", amplifies, "inverted",
        ),
        Claim(
            "The factor falls with r.", "H.4", "r = 4: 21.5; r = 64: about 2, which is 3.57 / 1.90",
            falls_with_r, "inverted",
        ),
    ),
    blunders={
        "random directions for ΔW's": read_as(of_own("random")),
        "W's directions for ΔW's": read_as(of_own("own")),
        "inverted": inverted,
    },
    toy="d is 64, so 64 directions are the whole space: there ‖UᵀWV‖ is ‖W‖ for every U and V.",
)
