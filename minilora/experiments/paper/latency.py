"""Table 1: how much longer does a forward pass take with an adapter?

Count decides what can be counted: the calls of a pass, and the longest chain of calls in which each
waits for the one before. Time decides the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ... import lora, viz
from ...accounting.traced import meter
from ...backend import using
from ...jobs.driver import Job
from ...models.gpt2 import GPT2
from ...tensor import no_grad
from .. import timing
from ..cells import Scale
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Figure, Table, Verdict, larger
from ..results import Results
from ..timing import SHAPES, more

FORMS = {  # name -> method and its settings, for d = 1; Table 1 has r = 224 of d = 1,024
    "base": ("base", {}), "merged": ("lora", {}), "LoRA": ("lora", {}),
    "Adapter-L": ("adapter-l", {"r": 7 / 32}), "Adapter-H": ("adapter-h", {"r": 7 / 64}),
}
LORA = {"r": 4, "alpha": 4.0, "targets": ("q", "v")}
SETTINGS = ((1, 16), (4, 32), (8, 64))  # batch, tokens
SMALL, LARGE = "1 x 16", "8 x 64"
ADAPTERS = ("Adapter-L", "Adapter-H")


def form(name: str, shape: str) -> GPT2:
    """Return a model of this shape in one of the FORMS."""
    method, share = FORMS[name]
    sizes = {key: int(x * SHAPES[shape]["d_model"]) for key, x in share.items()}
    model = timing.built(shape, method, **(LORA if method == "lora" else sizes))
    if name == "merged":
        lora.merge(model)
    return model.eval()


def latency(shape: str, blocks: int) -> dict[str, Any]:
    """Return {"counts": setting -> form -> cost, "times": setting -> form -> milliseconds}."""
    models = {name: form(name, shape) for name in FORMS}
    counts, times = {}, {}
    for batch, tokens in SETTINGS:
        inputs, at = timing.ids(shape, batch, tokens)[0], f"{batch} x {tokens}"
        counts[at] = {name: counted(name, shape, inputs) for name in FORMS}
        with no_grad():
            times[at] = timing.in_turns({name: bound(model, inputs)
                                         for name, model in models.items()}, blocks)
    return {"counts": counts, "times": times}


def bound(model: GPT2, inputs: Any) -> Callable[[], Any]:
    return lambda: model(inputs)


def counted(name: str, shape: str, inputs: Any) -> dict[str, int]:
    """Return the cost of a forward pass, run on arrays without numbers (accounting.UNITS)."""
    with using("shapes:numpy"), no_grad():
        model, counts = form(name, shape), meter()
        counts.ignore(inputs)
        model(inputs)  # creates what later passes share
        counts.reset()
        model(inputs)
        return dict(counts.cost._asdict())


def job(scale: Scale, shape: str) -> Job:
    config = {"shape": shape, "blocks": timing.blocks_for(scale.fast)}
    return Job("latency", config, f"latency, {shape}", alone=True)


def cost(results: Results, shape: str, at: str, name: str) -> dict[str, int]:
    return dict(results.job(job(results.scale, shape))["counts"][at][name])


def times(results: Results, shape: str, at: str) -> timing.Times:
    return dict(results.job(job(results.scale, shape))["times"][at])


def every() -> list[tuple[str, str]]:
    return [(shape, f"{b} x {t}") for shape in SHAPES for b, t in SETTINGS]


def merged_is_base(results: Results) -> Verdict:
    """In every setting, a pass of the merged model has the same calls, chain of calls, products and
    bytes moved as one of the base. This is exact."""
    same = all(cost(results, *at, "merged") == cost(results, *at, "base") for at in every())
    calls = cost(results, "tiny", SMALL, "merged")["calls"], cost(results, "tiny", SMALL, "base")
    return Verdict(REPRODUCES if same else FAILS,
                   f"merged: {calls[0]} calls in a pass of the tiny model, base: "
                   f"{calls[1]['calls']}; all counts are {'' if same else 'not '}equal")


def adapters_are_deeper(results: Results) -> Verdict:
    """In every setting, the longest chain of calls that wait for one another is longer with
    Adapter-L and with Adapter-H than in the base. This is exact."""
    depth = {at: [cost(results, *at, name)["depth"] for name in ("base", *ADAPTERS)]
             for at in every()}
    right = all(base < min(others) for base, *others in depth.values())
    base, low, high = depth["tiny", SMALL]
    return Verdict(REPRODUCES if right else FAILS,
                   f"chain of calls of the tiny model: base {base}, Adapter-L {low}, "
                   f"Adapter-H {high}")


def small_batches_suffer(results: Results) -> Verdict:
    """In the wide model, the share of time that an adapter adds to the base's is larger for one
    short sequence (1 x 16 tokens) than for a batch (8 x 64), for Adapter-L and Adapter-H, by more
    than the noise floor."""
    effects = []
    for name in ADAPTERS:
        few, many = (more(times(results, "wide", at), name, "base") for at in (SMALL, LARGE))
        what = f"{name}: added share of time at {SMALL} minus at {LARGE}"
        effects.append(timing.measured(what, few, many))
    return larger(effects)


def more_layers_cost_more(results: Results) -> Verdict:
    """In the wide model with one short sequence, a pass takes more time with Adapter-H than with
    Adapter-L, which has half as many adapters of twice the size, by more than the noise floor."""
    low, high = (more(times(results, "wide", SMALL), name, "base") for name in ADAPTERS)
    return larger([timing.measured("Adapter-H minus Adapter-L, as a share of the base", high, low)])


def tables(results: Results) -> list[Table]:
    head = ["batch x tokens", "form", "calls", "chain", "MFLOPs", "ms", "time added"]
    return [
        Table(
            f"One forward pass, {shape} model", head,
            [[at, name, (c := cost(results, shape, at, name))["calls"], c["depth"],
              f"{c['products'] / 1e6:.1f}", timing.median_ms(times(results, shape, at), name),
              timing.percent(more(times(results, shape, at), name, "base"))]
             for at in (f"{b} x {t}" for b, t in SETTINGS) for name in FORMS],
            "calls: of functions that compute; chain: the most of them that wait for one another; "
            "ms and time added: of one processor, measured in turns",
        )
        for shape in SHAPES
    ]


def figures(results: Results) -> list[Figure]:
    def draw(at: str) -> Any:
        return viz.latency_bars(times(results, "wide", at), title=f"batch x tokens: {at}")

    return [Figure(f"latency-{at.replace(' ', '')}", functools.partial(draw, at),
                   f"the time of a forward pass of the wide model in each form, {at} tokens")
            for at in (SMALL, LARGE)]


def exchanged(a: str, b: str, part: str) -> Callable[[Results], Results]:
    """Plant a mistake: in the counts or times, what belongs to a is taken for b's, and the reverse.

    a, b: two forms, or two settings.
    """
    def swapped(by: dict[str, Any]) -> dict[str, Any]:
        return {{a: b, b: a}.get(name, name): value for name, value in by.items()}

    def change(job: Job, result: Any) -> Any:
        if job.kind != "latency":
            return result
        forms = {at: swapped(by) for at, by in swapped(result[part]).items()}
        return result | {part: forms}

    return lambda results: results.changed(change)


EXPERIMENT = Experiment(
    name="latency", title="How much longer does a forward pass take?", tables=tables,
    figures=figures, jobs=lambda results: [job(results.scale, shape) for shape in SHAPES],
    noise=timing.NOISE,
    claims=(
        Claim(
            "Merged LoRA adds no latency: the model runs the same operations as the base.", "§4.1",
            "by construction; the paper prints no time of it but the base's", merged_is_base,
            "unmerged for merged",
        ),
        Claim(
            "Adapter layers must be processed one after the other, so they add depth.", "§3",
            "by construction", adapters_are_deeper, "base for Adapter-L",
        ),
        Claim(
            "The added latency is largest for a small batch and a short sequence.", "Table 1",
            "GPT-2 medium; Adapter-L +2.2, +5.0, +20.7 %, Adapter-H +3.0, +8.4, +30.3 % at batch x "
            "tokens 32 x 512, 16 x 256, 1 x 128", small_batches_suffer, "settings exchanged",
        ),
        Claim(
            "Adapter-H, with two adapters in a block, is slower than Adapter-L, with one.",
            "Table 1", "batch x tokens 1 x 128: +30.3 % against +20.7 %", more_layers_cost_more,
            "adapters exchanged",
        ),
    ),
    blunders={
        "unmerged for merged": exchanged("merged", "LoRA", "counts"),
        "base for Adapter-L": exchanged("base", "Adapter-L", "counts"),
        "settings exchanged": exchanged(SMALL, LARGE, "times"),
        "adapters exchanged": exchanged("Adapter-L", "Adapter-H", "times"),
    },
    toy="Random weights: time and counts do not depend on them. One thread of a CPU, not a GPU.",
)
