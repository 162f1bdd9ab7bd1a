"""Runs that differ in alpha, the learning rate and A's start, compared after every step.

Under Adam, a run with scale s, rate η/√s and start A0/√s has the same ΔW as one with scale 1, rate
η and start A0: its A and B are 1/√s as large, and its gradients √s times. If √s is a power of two,
each product of the one run is a product of the other times a power of two, so the bits agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import methods
from ..backend import asnumpy
from ..data.tasks import TASKS
from ..models.pretrained import load_base
from ..training.fit import train_step
from ..training.optim import AdamW
from ..training.schedules import linear_schedule
from .training import WARMUP, Drawn, rounded
from .variations import factors

POINTS = 10  # steps at which the distance is stored
EXAMPLES = 512  # to train on


class Scaled:
    """LoRA with scale s, and all else so that its ΔW is that of scale 1 if the law holds."""

    def __init__(
        self, base: str, r: int, s: float, *, rate: float, steps: int, seed: int, decay: float,
        eps: float, clip: float | None, adjusted: bool, starts: bool, over_r: bool,
    ) -> None:
        root = math.sqrt(s)
        alpha = s * r if over_r or s == 1 else s * r * r
        self.model: Any = load_base(base)
        methods.apply(self.model, "lora", rng=seed, r=r, alpha=alpha)
        for adapter in factors(self.model):
            adapter.A.data /= root if starts else 1.0
        more = root if adjusted else 1.0
        self.clip = clip and clip * more
        self.schedule = linear_schedule(rate / root, steps, int(WARMUP * steps))
        self.optimizer = AdamW(self.model.trainable_parameters(), lr=rate / root, eps=eps * more,
                               weight_decay=decay * more)

    def step(self, i: int, batch: Any) -> None:
        self.optimizer.lr = self.schedule(i)
        train_step(self.model, [batch], self.optimizer, max_grad_norm=self.clip)

    def updates(self) -> list[np.ndarray]:
        """Return ΔW = s B A of every adapted matrix, in the model's dtype."""
        parts = [part for adapter in factors(self.model) for part in adapter.factors()]
        return [scale * (asnumpy(B.data) @ asnumpy(A.data)) for scale, B, A in parts]


def compare(
    task: str, r: int, rate: float, steps: int, batch: int, seed: int, scales: Sequence[float],
    decay: float = 0.0, eps: float = 0.0, clip: float | None = None, adjusted: bool = False,
    starts: bool = True, over_r: bool = True,
) -> list[dict[str, Any]]:
    """Train a run with scale 1 and one for each other scale; return how far they are apart.

    scales     powers of 4        decay, eps, clip: of AdamW, and the largest norm of a gradient
    adjusted   decay, eps and clip are multiplied by √s
    starts     A0 is divided by √s
    over_r     False, a mistake: the other runs multiply by alpha, not by alpha / r
    For each scale: "equal", the number of steps before ΔW first differs in a bit; "at", some steps,
    and "distance", |ΔW - ΔW of scale 1| / |ΔW of scale 1| (Frobenius norms) after each of them.
    """
    about = TASKS[task]
    batches = Drawn(about, about.examples("train", EXAMPLES), batch, seed)
    settings: dict[str, Any] = {
        "rate": rate, "steps": steps, "seed": seed, "decay": decay, "eps": eps, "clip": clip,
        "adjusted": adjusted, "starts": starts, "over_r": over_r,
    }
    one = Scaled(about.base, r, 1.0, **settings)
    others = {s: Scaled(about.base, r, s, **settings) for s in scales}
    every = max(1, steps // POINTS)
    result: dict[float, dict[str, Any]] = {
        s: {"scale": s, "equal": 0, "at": [], "distance": []} for s in scales
    }
    for i in range(steps):
        one.step(i, batches[i])
        expected = one.updates()
        for s, run in others.items():
            run.step(i, batches[i])
            found, line = run.updates(), result[s]
            if line["equal"] == i and all(map(np.array_equal, found, expected)):
                line["equal"] = i + 1
            if (i + 1) % every == 0:
                line["at"].append(i + 1)
                line["distance"].append(_distance(found, expected))
    return rounded(list(result.values()))  # type: ignore[no-any-return]


def _distance(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    pairs = [(x.astype(np.float64), y.astype(np.float64)) for x, y in zip(found, expected)]
    apart = math.fsum(float(((x - y) ** 2).sum()) for x, y in pairs)
    return math.sqrt(apart / math.fsum(float((y * y).sum()) for _, y in pairs))
