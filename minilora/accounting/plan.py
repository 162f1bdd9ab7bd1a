"""The cost of one training step of a model of any size, counted on arrays without numbers."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from functools import partial
from typing import Any

from .. import methods
from ..adapters.registry import base_of, state_of
from ..adapters.storage import storable, store
from ..backend import using
from ..backend.shapes import Cost
from ..models.config import ModelConfig
from ..models.families import SHAPES, build
from ..training import optim
from ..words import our_words
from .folded import observe_folded
from .parameters import Count, count
from .step import random_ids
from .traced import meter

OPTIMIZERS = {"adamw": optim.AdamW, "adam": optim.Adam, "sgd": optim.SGD}
STORED = {"half base": "float16", "int8 base": "int8", "nf4 base": "nf4"}  # policy -> base_dtype
POLICIES = {"float32": "float32", **dict.fromkeys(STORED, "float32"), "mixed": "float16"}

UNITS = {  # field of a Cost -> its unit, and what it counts
    "products": ("FLOPs", "of matrix products, 2 for each multiply-add"),
    "elementwise": ("numbers", "that elementwise functions write and that reductions read"),
    "moved": ("bytes", "that all functions read and write"),
    "calls": ("calls", "of functions that compute; on a GPU each starts a kernel"),
    "depth": ("calls", "in the longest chain in which each waits for the one before"),
}

COMPARED = (  # the methods of the paper's tables 2 to 4, at sizes of these tables
    methods.Full(), methods.FTTop2(), methods.BitFit(), methods.PreEmbed(lp=256, li=8),
    methods.PreLayer(lp=8, li=8), methods.AdapterH(r=1), methods.AdapterH(r=8),
    methods.AdapterL(r=8), methods.AdapterP(r=8), methods.AdapterD(r=8), methods.LoRA(r=1),
    methods.LoRA(r=8), methods.LoRAPreEmbed(r=8, lp=8, li=4), methods.LoRAPreLayer(r=8, lp=8, li=4),
)


@dataclass(frozen=True)
class Plan:
    """The memory and the work of one training step.

    title        the arguments of `plan`
    count        numbers of parameters
    bytes        kind of memory -> bytes, with "peak": the most in use at one time
    activations  kind of op -> bytes
    checkpoint   bytes of the trained parameters, which training saves
    forward, backward, step (the optimizer's): the `Cost` of each, in UNITS
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
        """Return all fields as plain numbers, for JSON."""
        costs = {name: getattr(self, name)._asdict() for name in ("forward", "backward", "step")}
        parameters = {"trainable": self.count.trainable, "frozen": self.count.frozen}
        return {
            "title": self.title, "parameters": parameters, "bytes": dict(self.bytes),
            "activations": dict(self.activations), "checkpoint": self.checkpoint, **costs,
        }

    def __str__(self) -> str:
        lines = [self.title, str(self.count), "", f"{'memory':<20}{'bytes':>22}"]
        for name, size in {**self.bytes, "checkpoint": self.checkpoint}.items():
            lines.append(f"{name:<20}{size:>22,}")
        lines += ["", f"{'cost of':<20}{'forward':>22}{'backward':>22}{'step':>22}"]
        for name, (unit, _) in UNITS.items():
            each = (getattr(cost, name) for cost in (self.forward, self.backward, self.step))
            label = name if name == unit else f"{name}, {unit}"
            lines.append(f"{label:<20}" + "".join(f"{n:>22,}" for n in each))
        lines += ["", *(f"{name}: {unit} {what}" for name, (unit, what) in UNITS.items())]
        return "\n".join(lines)


@our_words
def plan(
    shape: str | ModelConfig, *, method: str | methods.Method = "lora", batch: int = 1,
    tokens: int | None = None, optimizer: str = "adamw", policy: str = "float32",
    recompute: bool = False, device: str = "numpy", plain: bool = False, **settings: Any,
) -> Plan:
    """Return the memory and work of one training step. The step runs on arrays without numbers.

    shape      a name of SHAPES, or a model's config, such as a GPT2Config
    method     a name of methods.METHODS, with its settings (r=4), or a method. "full" trains the
               model's own parameters; `methods.apply` would train copies beside the base
    batch      sequences
    tokens     of each sequence; None: the most that the model reads
    optimizer  "adamw", "adam" or "sgd"
    policy     "float32"; "half base": frozen matrices are stored in float16, arithmetic is float32;
               "int8 base", "nf4 base": those of the blocks' Linear layers as codes, with float32;
               "mixed": weights and arithmetic are float16, the optimizer's masters float32
    recompute  recompute each block's activations in the backward pass
    device     the array library that is imitated: "numpy" or "cupy"
    plain      run without the kernels

    Raises ValueError for an unknown name, TypeError for settings beside a method that has its own.
    """
    for argument, name, known in (
        ("shape", shape, SHAPES), ("method", method, methods.METHODS),
        ("optimizer", optimizer, OPTIMIZERS), ("policy", policy, POLICIES),
        ("device", device, ("numpy", "cupy")),
    ):
        if isinstance(name, str) and name not in known:
            raise ValueError(f"plan: unknown {argument} {name!r}: choose from {', '.join(known)}")
    if isinstance(method, str):
        method = methods.METHODS[method](**settings)
    elif settings:
        raise TypeError(f"plan: leave out {', '.join(settings)}: {method} has its own settings")
    if isinstance(method, methods.Full) and policy in STORED:
        raise ValueError(f'plan: "{policy}" goes with "lora": full training has no frozen base')
    config = SHAPES[shape] if isinstance(shape, str) else shape
    if tokens is None:
        tokens = config.n_positions - getattr(method, "lp", 0) - getattr(method, "li", 0)
    with using(f"shapes:{device}", plain=plain):
        model = build(config, rng=0, dtype=POLICIES[policy], recompute=recompute)
        if not isinstance(method, methods.Full):
            method.apply(model, rng=0)
            store(model, storable(base_of(model), STORED.get(policy)), state_of(model))
        whole, trained = count(model), model.trainable_parameters()
        ids, counted = random_ids(model, batch, tokens), meter()
        counted.ignore(ids)
        with methods.prompt(tokens):  # for methods with trained tokens behind the prompt
            seen = observe_folded(model, partial(OPTIMIZERS[optimizer], lr=0.0), ids, counted)
        extra = "recomputed, " if recompute else ""
        by = OPTIMIZERS[optimizer].__name__
        name = shape if isinstance(shape, str) else type(shape).__name__
        return Plan(
            f"{name}: {label(method)}, {batch} × {tokens:,} tokens, {by}, {policy}, "
            f"{extra}{device}",
            whole, {**seen.rows, "peak": seen.peak}, seen.kinds,
            sum(p.data.nbytes for p in trained.values()), *seen.costs,
        )


@our_words
def label(method: methods.Method) -> str:
    """Return the method's name with its sizes, targets, and settings that are not the default."""
    always = ("r", "lp", "li", "targets")
    both = {f.name: (getattr(method, f.name), f.default) for f in fields(method)}  # type: ignore[arg-type]
    settings = {name: value for name, (value, default) in both.items()
                if name in always or (default is not MISSING and value != default)}
    words = [f"{name}={','.join(value) if name == 'targets' else value}"
             for name, value in settings.items()]
    return " ".join([method.called, *words])
