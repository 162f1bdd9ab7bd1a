"""What training a model would cost, at any size: built and run on arrays without numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import lora, optim
from ..backend import using
from ..backend.shapes import Cost
from ..config import SHAPES, ModelConfig
from ..models import build
from .parameters import Count, count
from .step import observe, random_ids

OPTIMIZERS = {"adamw": optim.AdamW, "adam": optim.Adam, "sgd": optim.SGD}
POLICIES = {"float32": "float32", "half base": "float32", "mixed": "float16"}  # what is computed


@dataclass(frozen=True)
class Plan:
    """What one training step takes.

    title: what was asked for   count: parameters   bytes: by row, and "peak"
    activations: bytes, by kind of op   checkpoint: bytes of what training saves
    forward, backward, step: cost of each; products are floating-point operations
    """

    title: str
    count: Count
    bytes: dict[str, int]
    activations: dict[str, int]
    checkpoint: int
    forward: Cost
    backward: Cost
    step: Cost

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, for JSON."""
        costs = {name: getattr(self, name)._asdict() for name in ("forward", "backward", "step")}
        parameters = {"trainable": self.count.trainable, "frozen": self.count.frozen}
        return {
            "title": self.title, "parameters": parameters, "bytes": dict(self.bytes),
            "activations": dict(self.activations), "checkpoint": self.checkpoint, **costs,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [self.title, str(self.count), "", f"{'bytes of':<16}{'':>22}"]
        for name, size in {**self.bytes, "checkpoint": self.checkpoint}.items():
            lines.append(f"{name:<16}{size:>22,}")
        lines += ["", f"{'cost of':<16}{'forward':>22}{'backward':>22}{'step':>22}"]
        for name in Cost._fields:
            each = (getattr(cost, name) for cost in (self.forward, self.backward, self.step))
            lines.append(f"{name:<16}" + "".join(f"{n:>22,}" for n in each))
        return "\n".join(line.rstrip() for line in lines)


def plan(
    shape: str | ModelConfig, *, method: str = "lora", r: int = 8, alpha: float = 16.0,
    targets: Sequence[str] = ("q", "v"), batch: int = 1, tokens: int | None = None,
    optimizer: str = "adamw", policy: str = "float32", recompute: bool = False,
    device: str = "numpy", plain: bool = False,
) -> Plan:  # fmt: skip
    """What one step of training takes: the code runs, on arrays that have no numbers.

    shape      a name of SHAPES, or a model's config, such as a GPT2Config
    method     "lora" (with r, alpha, targets), or "full": every parameter is trained
    tokens     of each sequence of the batch; None: as many as there are positions
    policy     "float32"; "half base": the frozen matrices are stored in float16, all is computed in
               float32; "mixed": model and arithmetic are float16, what the optimizer trains float32
    device     "numpy" or "cupy": whose memory and calls
    plain      without the kernels

    Raises ValueError for a name that there is not.
    """
    for what, name, known in (
        ("shape", shape, SHAPES), ("method", method, ("lora", "full")),
        ("optimizer", optimizer, OPTIMIZERS), ("policy", policy, POLICIES),
        ("device", device, ("numpy", "cupy")),
    ):  # fmt: skip
        if isinstance(name, str) and name not in known:
            raise ValueError(f"plan: there is no {what} {name!r}: there are {', '.join(known)}")
    if method == "full" and policy == "half base":
        raise ValueError('plan: "half base" goes with "lora": full training has no frozen base')
    targets = (targets,) if isinstance(targets, str) else tuple(targets)
    config = SHAPES[shape] if isinstance(shape, str) else shape
    tokens = config.n_positions if tokens is None else tokens
    with using(f"shapes:{device}", plain=plain) as library:
        model = build(config, rng=0, dtype=POLICIES[policy], recompute=recompute)
        if method == "lora":
            stored = "float16" if policy == "half base" else None
            settings = lora.LoRAConfig(r=r, alpha=alpha, targets=targets)
            lora.attach(model, settings, rng=0, base_dtype=stored)
        trained = model.trainable_parameters()
        ids, meter = random_ids(model, batch, tokens), library.meter()
        meter.ignore(ids)
        seen = observe(model, OPTIMIZERS[optimizer](trained, lr=0.0), ids, meter)
        return Plan(
            _title(shape, method, r, targets, batch, tokens, optimizer, policy, recompute, device),
            count(model), {**seen.rows, "peak": seen.peak}, seen.kinds,
            sum(p.data.nbytes for p in trained.values()), *seen.costs,
        )  # fmt: skip


def _title(
    shape: str | ModelConfig, method: str, r: int, targets: Sequence[str], batch: int, tokens: int,
    optimizer: str, policy: str, recompute: bool, device: str,
) -> str:  # fmt: skip
    how = f"LoRA r={r} on {', '.join(targets)}" if method == "lora" else "all parameters"
    kind = OPTIMIZERS[optimizer].__name__
    again = "recomputed, " if recompute else ""
    name = shape if isinstance(shape, str) else type(shape).__name__
    return f"{name}: {how}, {batch} × {tokens:,} tokens, {kind}, {policy}, {again}{device}"
