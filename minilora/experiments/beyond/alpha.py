"""Alpha is a learning rate: an exact law under Adam, and what breaks it.

The law: with eps = 0 and no weight decay, (scale s, rate η, start A0) and (1, √s η, √s A0) give the
same ΔW after every step. Here the second run is fixed and s varies; √s is a power of two, so that
floating-point numbers obey the law to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ... import viz
from ...jobs.driver import Job
from ..cells import Scale
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Figure, Table, Verdict
from ..results import Results
from ..training import CLIP, DECAY

TASK, R, RATE, STEPS, BATCH = "mini-e2e", 4, 3e-3, 100, 16
SCALES = (4.0, 64.0)
EPS = 1e-8  # the default of Adam

LAW, DECAYS, EPSILON, CLIPPED = "the law", "weight decay", "eps", "clipping"
ADJUSTED, SAME_START, WRONG = "all three, times √s", "A0 is not divided by √s", "alpha not over r"
CONDITIONS: Mapping[str, dict[str, Any]] = {
    LAW: {},
    DECAYS: {"decay": DECAY},
    EPSILON: {"eps": EPS},
    CLIPPED: {"clip": CLIP},
    ADJUSTED: {"decay": DECAY, "eps": EPS, "clip": CLIP, "adjusted": True},
    SAME_START: {"starts": False},
    WRONG: {"over_r": False},
}
BREAKERS = (DECAYS, EPSILON, CLIPPED)


def job(condition: str, seed: int, scale: Scale) -> Job:
    config = {"task": TASK, "r": R, "rate": RATE, "steps": 8 if scale.fast else STEPS,
              "batch": BATCH, "seed": seed, "scales": list(SCALES), **CONDITIONS[condition]}
    return Job("scaling", config, f"alpha: {condition}, seed {seed}")


def jobs(results: Results) -> list[Job]:
    return [job(condition, seed, results.scale)
            for condition in CONDITIONS for seed in range(results.scale.seeds)]


def lines(results: Results, condition: str) -> list[dict[str, Any]]:
    """Return what was compared: a mapping for each seed and each s."""
    seeds = range(results.scale.seeds)
    return [line for seed in seeds for line in results.job(job(condition, seed, results.scale))]


def instead(condition: str, other: str, results: Results) -> Results:
    """Return the results with a planted mistake: a condition is read from the runs of another."""
    jobs = {job(condition, seed, results.scale).key: job(other, seed, results.scale)
            for seed in range(results.scale.seeds)}
    return results.changed(
        lambda one, result: results.job(jobs[one.key]) if one.key in jobs else result)


def summary(results: Results, condition: str) -> str:
    """Return the fewest equal steps and the largest distance at the end, of all seeds and s."""
    compared = lines(results, condition)
    equal = min(line["equal"] for line in compared)
    apart = max(line["distance"][-1] for line in compared)
    return (f"{condition}: the bits of ΔW agree for the first {equal} of {STEPS} steps, and ΔW is "
            f"{apart:.2g} of its norm apart at the end")


def exact(results: Results, condition: str) -> bool:
    return all(line["equal"] == STEPS for line in lines(results, condition))


def holds(results: Results) -> Verdict:
    """Without decay and clipping and with eps = 0, every bit of ΔW agrees after every step, for
    each s and each seed. One bit that differs means that the law does not hold."""
    word = REPRODUCES if exact(results, LAW) else FAILS
    return Verdict(word, summary(results, LAW))


def breaks(results: Results) -> Verdict:
    """With weight decay alone, with eps alone and with clipping alone, ΔW differs in some bit by
    the last step, for each s and each seed. If one of the three leaves all bits equal, it does not
    break the law."""
    ends = [line for name in BREAKERS for line in lines(results, name)]
    word = REPRODUCES if all(line["distance"][-1] > 0 for line in ends) else FAILS
    return Verdict(word, "; ".join(summary(results, name) for name in BREAKERS))


def mended(results: Results) -> Verdict:
    """With weight decay, eps and clipping all present, and all three multiplied by √s in the run
    with scale s, every bit of ΔW agrees after every step, for each s and each seed."""
    word = REPRODUCES if exact(results, ADJUSTED) else FAILS
    return Verdict(word, summary(results, ADJUSTED))


def tables(results: Results) -> list[Table]:
    rows = []
    for condition in CONDITIONS:
        compared, row = lines(results, condition), [condition]
        for s in SCALES:
            own = [line for line in compared if line["scale"] == s]
            equal = min(line["equal"] for line in own)
            apart = np.mean([line["distance"][-1] for line in own])
            row += [str(equal), f"{apart:.2g}" if apart else "0"]
        rows.append(row)
    head = [text for s in SCALES for text in (f"equal steps, s = {s:g}", f"distance, s = {s:g}")]
    return [Table(
        f"ΔW with scale s, rate {RATE:g}/√s and start A0/√s, against scale 1, rate {RATE:g} and "
        "start A0", ["what is different", *head], rows,
        f"Equal steps: before the first bit differs, of {STEPS}, the fewest over the seeds. "
        "Distance: of the two ΔW at the end, over the norm of one, the mean over the seeds. "
        f"Weight decay {DECAY:g}, eps {EPS:g} and the largest norm {CLIP:g} are those of all runs "
        "here. The last line is the planted mistake.",
    )]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        curves = {}
        for condition in (*BREAKERS, SAME_START):
            own = [x for x in lines(results, condition) if x["scale"] == SCALES[-1]]
            y = np.mean([line["distance"] for line in own], axis=0)
            curves[condition] = (own[0]["at"], np.where(y > 0, y, np.nan))
        return viz.curves(curves, title=f"What breaks the law, s = {SCALES[-1]:g}", xlabel="steps",
                          ylabel="distance of ΔW, relative", log="y")

    return [Figure("alpha", draw, "relative distance of the two ΔW against steps, for weight "
                   "decay, eps, clipping and an A0 that is not divided; exact zeros are not drawn")]


EXPERIMENT = Experiment(
    name="alpha", title="Is alpha a learning rate?", tables=tables, figures=figures, jobs=jobs,
    claims=(
        Claim(
            "Under Adam alpha is a learning rate: scale s does what scale 1 does with √s times the "
            "rate and √s times A0, at every step.",
            "§4.1, made exact",
            "§4.1: tuning alpha is roughly the same as tuning the learning rate, if A is scaled "
            "appropriately at the start; no number",
            holds, WRONG,
        ),
        Claim(
            "Decoupled weight decay, eps and clipping each break the law.", "arXiv 2606.12883",
            "alpha is more than a learning rate; no number is taken from there", breaks,
            "decay off",
        ),
        Claim(
            "The law holds again where weight decay, eps and the largest norm are multiplied "
            "by √s.", "follows from the law; no paper is known to print it", "no number", mended,
            "not multiplied",
        ),
    ),
    blunders={
        WRONG: partial(instead, LAW, WRONG), "decay on": partial(instead, LAW, DECAYS),
        "decay off": partial(instead, DECAYS, LAW),
        "not multiplied": partial(instead, ADJUSTED, DECAYS),
    },
    noise="There is no noise floor: the claims are about bits.",
    toy=f"{STEPS} steps on {TASK}, r = {R}, q and v. √s is a power of two, so no product is "
        "rounded differently; for other s the law holds up to rounding.",
)
