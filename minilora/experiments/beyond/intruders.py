"""Does LoRA plant new top singular vectors? (Shuttleworth et al. 2024, arXiv 2410.21228)

Runs of LoRA and of full fine-tuning stop at the same loss. An intruder is a top singular vector of
W + ΔW that is like none of W's. The control is a random ΔW of the same singular values. Then ΔW is
scaled down: what comes back of the base, and what is lost of the task?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np

from ... import analysis, methods, viz
from ...backend import asnumpy
from ...data.tasks import TASKS
from ...jobs.driver import Job
from ...models.pretrained import load_base
from ...training.fit import evaluate, train_step
from ..cells import Cell, cell
from ..experiment import (
    UNDECIDED,
    Claim,
    Effect,
    Experiment,
    Figure,
    Table,
    Verdict,
    effect,
    larger,
    plus_minus,
)
from ..results import Results
from ..statistics import noise_floor
from ..training import CLIP, base_text, batches_of, loss, rounded, started

TASK, NAMES = "mini-e2e", ("q", "k", "v", "o")
RANKS, SMALL = (1, 4, 8, 64), (1, 4, 8)  # 64 is the whole space
TOP, EPS, DRAWS = 10, 0.5, 5  # singular vectors looked at; cosine of an intruder; random controls
SCALES = (1.0, 0.75, 0.5, 0.25, 0.0)
EVERY = 5  # steps between two looks at the loss


def at(r: int) -> Cell:
    return cell(TASK, "lora", r=r, targets=NAMES)


FULL = cell(TASK, "full")
CELLS = (FULL, *(at(r) for r in RANKS))


def matched(run: Mapping[str, Any], target: float) -> dict[str, Any]:
    """Return what a run that stops at the validation loss `target` did to W: numbers of one seed.

    intruders, random: the mean number per matrix among the TOP directions, of ΔW and of random
    updates; steps, loss: where it stopped; curve: {"task": ..., "base": ...}, the losses with ΔW
    times each of SCALES.
    """
    config = {name: x for name, x in run.items() if name not in ("validation", "test")}
    task, n = TASKS[run["task"]], run["validation"]
    held_out = batches_of(task, "validation", n)
    model, steps, reached = stopped(config, held_out, target)
    methods.merge(model)
    base = load_base(task.base)
    rng, counts, chance = np.random.default_rng(int(run["seed"])), [], []
    for name, dW in analysis.difference(base, model).items():
        if name.split(".")[-2] in NAMES:
            W = asnumpy(dict(base.named_parameters())[name].data)
            counts.append(analysis.intruders(W, dW, TOP, EPS).count)
            chance += [analysis.intruders(W, analysis.random_like(dW, rng), TOP, EPS).count
                       for _ in range(DRAWS)]
    known = base_text(task.base)
    curve: dict[str, list[float]] = {"task": [], "base": []}
    for factor in SCALES:
        part = scaled(base, model, factor)
        curve["task"].append(evaluate(part, held_out, loss))
        curve["base"].append(evaluate(part, known))
    return rounded({  # type: ignore[no-any-return]
        "intruders": float(np.mean(counts)), "random": float(np.mean(chance)), "steps": steps,
        "loss": reached, "curve": curve,
    })


def stopped(
    config: Mapping[str, Any], held_out: Sequence[Any], target: float
) -> tuple[Any, int, float]:
    """Return a model that is trained until its held-out loss is at most `target`, the steps that
    this took, and the loss."""
    model, optimizer, batches, schedule = started(**config)
    assert optimizer is not None
    steps, step, value = config["steps"], 0, np.inf
    while step < steps and value > target:
        optimizer.lr = schedule(step)
        train_step(model, [batches[step]], optimizer, loss=loss, max_grad_norm=CLIP)
        step += 1
        if step % EVERY == 0 or step == steps:
            value = evaluate(model, held_out, loss)
    return model.eval(), step, value


def scaled(base: Any, model: Any, factor: float) -> Any:
    """Return a model with W0 + factor · (W - W0) for each parameter."""
    result = deepcopy(base)
    after = dict(model.named_parameters())
    for name, p in result.named_parameters():
        W0, W = (asnumpy(x).astype(np.float64) for x in (p.data, after[name].data))
        p.data = (W0 + factor * (W - W0)).astype(np.float32)
    return result


def target(results: Results) -> float:
    """Return the loss that every run reaches: the worst at which one of them ended."""
    return float(np.nanmax([results.values(c, "loss", "validation") for c in CELLS])) * (1 + 1e-5)


def job(results: Results, one: Cell, seed: int) -> Job:
    run = one.run(results.rate(one), seed, results.scale).config
    config = {"run": run, "target": target(results)}
    return Job("intruders", config, f"intruders, {one.label()}, seed {seed}")


def jobs(results: Results) -> list[Job]:
    return [job(results, one, seed) for one in CELLS for seed in range(results.scale.seeds)]


def number(results: Results, one: Cell, what: str) -> np.ndarray:
    """Return a number of each seed: "intruders", "random", "steps" or "loss"."""
    found = [results.job(job(results, one, seed)) for seed in range(results.scale.seeds)]
    return np.array([run[what] for run in found], float)


def curves(results: Results, one: Cell, what: str) -> np.ndarray:
    """Return the loss of "task" or "base" for each seed and scale, (seeds, scales)."""
    found = [results.job(job(results, one, seed)) for seed in range(results.scale.seeds)]
    return np.array([run["curve"][what] for run in found])


def against(results: Results, other: Callable[[Cell], np.ndarray], name: str) -> Verdict:
    """Decide that LoRA has more intruders than `other` for every small rank."""
    mine = {r: number(results, at(r), "intruders") for r in SMALL}
    noise = noise_floor([*mine.values(), *(other(at(r)) for r in SMALL)], results.scale.seeds)
    return larger([effect(f"r = {r} minus {name}", mine[r], other(at(r)), noise) for r in SMALL])


def more_than_full(results: Results) -> Verdict:
    """At the same loss, LoRA with r = 1, 4 and 8 on q, k, v, o has more intruders in these matrices
    than full fine-tuning, by more than the noise floor."""
    full = number(results, FULL, "intruders")
    return against(results, lambda one: full, "full fine-tuning")


def more_than_random(results: Results) -> Verdict:
    """LoRA with r = 1, 4 and 8 has more intruders than random updates with its singular values, by
    more than the noise floor."""
    return against(results, lambda one: number(results, one, "random"), "random updates")


def scaling_gives_back(results: Results) -> Verdict:
    """With r = 4 and three quarters of ΔW, the share of the base's loss that comes back is larger
    than the share of the task's gain that is lost, by more than the noise floor. It is undecided
    where the full ΔW costs the base less than the noise floor."""
    task, base = (curves(results, at(4), what) for what in ("task", "base"))
    whole, none, part = (SCALES.index(x) for x in (1.0, 0.0, 0.75))
    forgot, gain = base[:, whole] - base[:, none], task[:, none] - task[:, whole]
    noise = noise_floor([base[:, whole]], results.scale.seeds)
    cost = effect("loss of the base, with ΔW minus without", forgot, 0 * forgot, noise)
    if cost.mean <= noise or gain.mean() <= 0:
        return Verdict(UNDECIDED, f"nothing is forgotten, or nothing learned: {cost}", (cost,))
    back = (base[:, whole] - base[:, part]) / forgot.mean()
    lost = (task[:, part] - task[:, whole]) / gain.mean()
    floor = noise_floor([back, lost], results.scale.seeds)
    found: Effect = effect("share that comes back minus share that is lost", back, lost, floor)
    return larger([found])


def tables(results: Results) -> list[Table]:
    rows = [[one.label(), *(plus_minus(number(results, one, what), digits)
                            for what, digits in (("steps", 0), ("loss", 3), ("intruders", 2),
                                                 ("random", 2)))] for one in CELLS]
    scaled_rows = [
        [one.label(), what, *(plus_minus(x, 3) for x in curves(results, one, what).T)]
        for one in CELLS for what in ("task", "base")
    ]
    return [
        Table("At the same loss", ["method", "steps", "loss", "intruders", "random ΔW"], rows,
              f"intruders: of the {TOP} top directions of W + ΔW, the mean over q, k, v, o of all "
              f"blocks; random ΔW: with the same singular values, the mean of {DRAWS}"),
        Table("ΔW times a factor", ["method", "loss of", *map(str, SCALES)], scaled_rows),
    ]


def figures(results: Results) -> list[Figure]:
    def draw() -> Any:
        lines = {f"loss of the {what}":
                 (SCALES, curves(results, at(4), what).mean(axis=0)) for what in ("task", "base")}
        return viz.curves(
            lines, title="LoRA r = 4", xlabel="factor of ΔW", ylabel="loss (nats a token)")

    return [Figure("scaled-update", draw, "losses of the task and of the base against ΔW's factor")]


def planted(change: Callable[[Any], Any]) -> Callable[[Results], Results]:
    """Return a planted mistake in what the jobs of this experiment found."""
    def changed(job: Job, result: Any) -> Any:
        return result | change(result) if job.kind == "intruders" else result

    return lambda results: results.changed(changed)


EXPERIMENT = Experiment(
    name="intruders", title="Does LoRA plant new top directions?", cells=CELLS, jobs=jobs,
    tables=tables, figures=figures,
    claims=(
        Claim(
            "At the same loss, LoRA has more intruder dimensions than full fine-tuning.",
            "arXiv 2410.21228", "full fine-tuning has almost none", more_than_full,
            "ΔW is left out",
        ),
        Claim(
            "LoRA has more of them than a random update of the same rank and norm.",
            "a control that arXiv 2410.21228 lacks", "", more_than_random,
            "compared with itself",
        ),
        Claim(
            "With three quarters of ΔW, more of the base comes back than is lost of the task.",
            "arXiv 2410.21228 scales down the intruders alone", "", scaling_gives_back,
            "ΔW is not scaled",
        ),
    ),
    blunders={
        "ΔW is left out": planted(lambda run: {"intruders": 0.0}),
        "compared with itself": planted(lambda run: {"random": run["intruders"]}),
        "ΔW is not scaled": planted(lambda run: {"curve": {
            what: [each[0]] * (len(each) - 1) + each[-1:] for what, each in run["curve"].items()}}),
    },
    toy=f"d is 64: a random direction has a cosine of about 0.36 with one of W's. ε is {EPS}.",
)
