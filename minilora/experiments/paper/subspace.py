"""Figures 3 and 4 (§7.2): do two runs find the same directions?

A run with r = 8 and one with r = 64 are compared, and two seeds with r = 64. The paper compares the
matrices A. But A keeps a part of its random start, while ΔW = BA starts at 0. So the claims are
decided on ΔW, and the first one also on A.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ... import analysis, viz
from ...jobs.driver import Job
from ..cells import cell
from ..experiment import Claim, Experiment, Figure, Table, Verdict, effect, larger, plus_minus
from ..results import Results
from ..statistics import noise_floor
from ..training import adapt

TASK, NAMES = "mini-e2e", ("q", "v")
FEW, MOST = (cell(TASK, "lora", r=r, targets=NAMES) for r in (8, 64))
TOP = 16  # directions whose similarity is kept
PAIRS = {"ranks": "r = 8 and r = 64", "seeds": "r = 64, two seeds"}
MATRICES = {"ranks": ("r = 8", "r = 64"), "seeds": ("a seed", "the next seed")}
HALF = 0.5  # "normalized similarity > 0.5"
SHOWN = ((1, 1), (2, 2), (4, 4), (8, 8), (16, 16))


def subspace(few: Mapping[str, Any], most: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
    """Return pair -> "q" or "v" -> what -> φ at [i - 1][j - 1], of the last block.

    few, most, other: configs of runs, which are repeated here; pairs: few and most, most and other.
    what: "update" for ΔW, "A", and "random" for matrices with ΔW's singular values.
    """
    runs = {"few": few, "most": most, "other": other}
    found = {name: last_updates(config) for name, config in runs.items()}
    rng = np.random.default_rng(int(most["seed"]))
    result: dict[str, Any] = {}
    for pair, (a, b) in {"ranks": ("few", "most"), "seeds": ("most", "other")}.items():
        result[pair] = {}
        for name in NAMES:
            one, two = found[a][name], found[b][name]
            random = [analysis.random_like(dW, rng) for dW in (one, two)]
            result[pair][name] = {
                "update": grid(one, two), "A": grid(one[2], two[2]), "random": grid(*random)}
    return result


def last_updates(config: Mapping[str, Any]) -> dict[str, Any]:
    """Repeat a run, and return (scale, B, A) of the last block's matrices."""
    model = adapt(**{name: x for name, x in config.items() if name not in ("validation", "test")})
    found = analysis.updates(model)
    return {name: found[f"blocks.{len(model.blocks) - 1}.attn.{name}.W"] for name in NAMES}


def grid(one: Any, two: Any) -> list[list[float]]:
    """Return φ for the first directions, with three digits after the point."""
    n, m = (min(TOP, analysis.rank_for(x, 1.0)) for x in (one, two))
    return np.asarray(analysis.subspace_grid(one, two, n, m).round(3)).tolist()  # type: ignore[no-any-return]


def jobs(results: Results) -> list[Job]:
    """Return one job for each seed, which compares it with the next."""
    scale, few, most = results.scale, results.rate(FEW), results.rate(MOST)
    return [
        Job("subspace", {
            "few": FEW.run(few, seed, scale).config, "most": MOST.run(most, seed, scale).config,
            "other": MOST.run(most, seed + 1, scale).config,
        }, f"subspaces, seed {seed}")
        for seed in range(scale.seeds)
    ]


def phi(results: Results, pair: str, name: str, what: str, i: int, j: int) -> np.ndarray:
    """Return φ(i, j) of each seed; nan where the ranks are smaller."""
    grids = [results.job(job)[pair][name][what] for job in jobs(results)]
    return np.array([g[i - 1][j - 1] if i <= len(g) and j <= len(g[0]) else np.nan for g in grids])


def floor(results: Results, pair: str, what: str) -> float:
    groups = [phi(results, pair, name, what, i, i) for name in NAMES for i in (1, 4, 8)]
    return noise_floor(groups, results.scale.seeds)


def only_the_top(results: Results, what: str) -> Verdict:
    effects, noise = [], floor(results, "ranks", what)
    for name in NAMES:
        top, rest = (phi(results, "ranks", name, what, i, i) for i in (1, 8))
        effects += [effect(f"{name}: φ(1, 1) minus 0.5", top, np.full_like(top, HALF), noise),
                    effect(f"{name}: φ(1, 1) minus φ(8, 8)", top, rest, noise)]
    return larger(effects)


def top_of_updates(results: Results) -> Verdict:
    """For q and v, φ(1, 1) of the ΔW of r = 8 and of r = 64 is above 0.5, and above φ(8, 8), by
    more than the noise floor."""
    return only_the_top(results, "update")


def top_of_A(results: Results) -> Verdict:
    """For q and v, φ(1, 1) of the A of r = 8 and of r = 64 is above 0.5, and above φ(8, 8), by more
    than the noise floor."""
    return only_the_top(results, "A")


def seeds_share_a_few(results: Results) -> Verdict:
    """For q and v with r = 64, φ(1, 1) and φ(4, 4) of the ΔW of two seeds are above those of random
    matrices, and φ(1, 1) is above φ(16, 16), by more than the noise floor."""
    effects, noise = [], floor(results, "seeds", "update")
    for name in NAMES:
        for i in (1, 4):
            own, chance = (phi(results, "seeds", name, what, i, i) for what in ("update", "random"))
            effects.append(effect(f"{name}: φ({i}, {i}) minus random", own, chance, noise))
        top, rest = (phi(results, "seeds", name, "update", i, i) for i in (1, 16))
        effects.append(effect(f"{name}: φ(1, 1) minus φ(16, 16)", top, rest, noise))
    return larger(effects)


def random_share_none(results: Results) -> Verdict:
    """For two random matrices with the singular values of r = 64, φ(1, 1) and φ(4, 4) are below
    0.5, by more than the noise floor."""
    effects, noise = [], floor(results, "seeds", "random")
    for name in NAMES:
        for i in (1, 4):
            chance = phi(results, "seeds", name, "random", i, i)
            what = f"{name}: 0.5 minus φ({i}, {i}) of random matrices"
            effects.append(effect(what, np.full_like(chance, HALF), chance, noise))
    return larger(effects)


def tables(results: Results) -> list[Table]:
    whats = {"update": "ΔW", "A": "A", "random": "random"}
    return [
        Table(f"φ(i, j): {says}", ["matrix", "of", *(f"φ({i}, {j})" for i, j in SHOWN)],
              [[name, whats[what], *(shown(phi(results, pair, name, what, i, j)) for i, j in SHOWN)]
               for name in NAMES for what in whats],
              "1: one space contains the other; by chance it is max(i, j) / 64")
        for pair, says in PAIRS.items()
    ]


def shown(values: np.ndarray) -> str:
    return plus_minus(values, 2) if np.isfinite(values).all() else ""


def figures(results: Results) -> list[Figure]:
    def draw(pair: str) -> Any:
        found = results.job(jobs(results)[0])[pair]
        grids = {f"ΔW of {name}": found[name]["update"] for name in NAMES}
        return viz.subspace_similarity(
            grids | {"random": found["q"]["random"]}, title=PAIRS[pair], names=MATRICES[pair])

    return [Figure(f"subspace-{pair}", functools.partial(draw, pair),
                   f"φ(i, j) of the first seed for q, v and random matrices: {says}")
            for pair, says in PAIRS.items()]


def with_itself(pair: str, *whats: str) -> Callable[[Results], Results]:
    """Plant a mistake: each matrix is compared with itself, so every φ is 1."""
    def change(job: Job, result: Any) -> Any:
        if job.kind != "subspace":
            return result
        changed = {name: {what: np.ones_like(g).tolist() if what in whats else g
                          for what, g in by.items()} for name, by in result[pair].items()}
        return result | {pair: changed}

    return lambda results: results.changed(change)


EXPERIMENT = Experiment(
    name="subspace", title="Do two runs find the same directions?", cells=(FEW, MOST), jobs=jobs,
    tables=tables, figures=figures,
    claims=(
        Claim(
            "The top direction of r = 8 is one of r = 64, while the others are not.",
            "§7.2, Figure 3", "a subspace of dimension 1 with a similarity above 0.5",
            top_of_updates, "ΔW with itself",
        ),
        Claim(
            "The same holds for A alone, as the paper measures it.", "§7.2, Figure 3",
            "a subspace of dimension 1 with a similarity above 0.5", top_of_A, "A with itself",
        ),
        Claim(
            "Two seeds share a few top directions.", "§7.2, Figure 4",
            "shown by colours; no number is printed", seeds_share_a_few, "random with ΔW itself",
        ),
        Claim(
            "Two random matrices share no direction.", "§7.2, Figure 4",
            "shown by colours; by chance φ is max(i, j) / d", random_share_none,
            "random with itself",
        ),
    ),
    blunders={
        "ΔW with itself": with_itself("ranks", "update"),
        "A with itself": with_itself("ranks", "A"),
        "random with ΔW itself": with_itself("seeds", "update", "random"),
        "random with itself": with_itself("seeds", "random"),
    },
    toy="d is 64, so 64 directions are the whole space: the paper compares up to j = 64 of 12,288.",
)
