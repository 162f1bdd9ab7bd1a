"""§4.2 and footnote 5: is a training step with LoRA faster than with full fine-tuning?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ... import accounting
from ...jobs.driver import Job
from ...models.gpt2 import GPT2Config
from ...training.fit import train_step
from ...training.optim import AdamW
from .. import timing
from ..cells import Scale
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Table, Verdict, larger
from ..results import Results
from ..timing import SHAPES, more

METHODS: dict[str, dict[str, Any]] = {
    "full": {}, "lora": {"r": 4, "alpha": 4.0, "targets": ("q", "v")}
}
SIZES = {"tiny": (32, 32), "wide": (4, 64)}  # batch, tokens
SAVED = 0.25  # footnote 5


def throughput(shape: str, blocks: int) -> dict[str, Any]:
    """Return {"counts": method -> costs and bytes of a step, "times": method -> milliseconds}."""
    batch, tokens = SIZES[shape]
    inputs, targets = timing.ids(shape, batch, tokens)
    counts, calls = {}, {}
    for name, settings in METHODS.items():
        plan = accounting.plan(
            GPT2Config(**SHAPES[shape]), method=name, batch=batch, tokens=tokens, **settings)
        products = plan.forward.products + plan.backward.products + plan.step.products
        counts[name] = {"products": products, "peak": plan.bytes["peak"],
                        "Adam moments": plan.bytes["Adam moments"],
                        "gradients": plan.bytes["gradients"], "trained": plan.count.trainable}
        model = timing.built(shape, "base" if name == "full" else name, **settings)
        optimizer = AdamW(model.trainable_parameters(), lr=1e-4)
        calls[name] = bound(model, (inputs, targets), optimizer)
    return {"counts": counts, "times": timing.in_turns(calls, blocks)}


def bound(model: Any, batch: Any, optimizer: AdamW) -> Callable[[], Any]:
    return lambda: train_step(model, [batch], optimizer)


def job(scale: Scale, shape: str) -> Job:
    config = {"shape": shape, "blocks": timing.blocks_for(scale.fast)}
    return Job("throughput", config, f"training step, {shape}", alone=True)


def count(results: Results, shape: str, what: str) -> tuple[int, int]:
    """Return a count of full fine-tuning, and of LoRA."""
    counts = results.job(job(results.scale, shape))["counts"]
    return counts["full"][what], counts["lora"][what]


def saved(results: Results, shape: str) -> np.ndarray:
    """Return the share of full fine-tuning's time that LoRA saves."""
    return -more(results.job(job(results.scale, shape))["times"], "lora", "full")


def fewer_operations(results: Results) -> Verdict:
    """In both models, a step of LoRA has fewer FLOPs in products than one of full fine-tuning, and
    its gradients, Adam's moments and peak memory have fewer bytes. This is exact."""
    wanted = ("products", "gradients", "Adam moments", "peak")
    pairs = [count(results, shape, what) for shape in SHAPES for what in wanted]
    right = all(less < full for full, less in pairs)
    shares = ", ".join(
        f"{what} {less / full:.1%}" for what, (full, less) in zip(wanted, pairs[-len(wanted):]))
    return Verdict(REPRODUCES if right else FAILS,
                   f"wide model, LoRA as a share of full fine-tuning: {shares}")


def step_is_faster(results: Results) -> Verdict:
    """In the wide model, a step of LoRA takes less time than one of full fine-tuning, by more than
    the noise floor."""
    share = saved(results, "wide")
    return larger([timing.measured("share of time saved", share, np.zeros_like(share))])


def saves_a_quarter(results: Results) -> Verdict:
    """In the wide model, a step of LoRA takes at most 75 % of the time of one of full fine-tuning,
    by more than the noise floor."""
    share = saved(results, "wide")
    what = "share of time saved, minus 25 %"
    return larger([timing.measured(what, share, np.full_like(share, SAVED))])


def tables(results: Results) -> list[Table]:
    rows = []
    for shape, (batch, tokens) in SIZES.items():
        found = results.job(job(results.scale, shape))
        for name in METHODS:
            c = found["counts"][name]
            rows.append([
                f"{shape}, {batch} x {tokens}", name, f"{c['trained']:,}",
                f"{c['products'] / 1e9:.3g}", f"{c['gradients'] + c['Adam moments']:,}",
                f"{c['peak']:,}", timing.median_ms(found["times"], name),
                timing.percent(more(found["times"], name, "full")),
            ])
    head = ["model, batch x tokens", "method", "trained", "GFLOPs", "gradients and moments, bytes",
            "peak, bytes", "ms", "time"]
    return [Table("One training step with AdamW", head, rows,
                  "ms and time: of one processor, measured in turns; all else is counted")]


def as_full(results: Results) -> Results:
    """Plant a mistake: LoRA also computes the gradients of the frozen weights, as full does."""
    def change(job: Job, result: Any) -> Any:
        if job.kind != "throughput":
            return result
        return {part: dict.fromkeys(by, by["full"]) for part, by in result.items()}

    return results.changed(change)


EXPERIMENT = Experiment(
    name="throughput", title="Is training faster?", tables=tables, noise=timing.NOISE,
    jobs=lambda results: [job(results.scale, shape) for shape in SHAPES],
    claims=(
        Claim(
            "No gradient is needed for most parameters, so a step needs less work and memory.",
            "§4.2", "memory during training from 1.2 TB to 350 GB for GPT-3", fewer_operations,
            "frozen weights get gradients",
        ),
        Claim(
            "A training step is faster than with full fine-tuning.", "§4.2, footnote 5",
            "GPT-3 175B: 43.1 against 32.5 tokens a second on each GPU", step_is_faster,
            "frozen weights get gradients",
        ),
        Claim(
            "It takes 25 % less time.", "§4.2, footnote 5",
            "a speed-up of 25 %: 32.5 / 43.1 is 24.6 % less time, or 32.6 % more tokens a second",
            saves_a_quarter, "frozen weights get gradients",
        ),
    ),
    blunders={"frozen weights get gradients": as_full},
    toy="One thread of a CPU; random weights. The paper has GPUs, and weights shared among them.",
)
