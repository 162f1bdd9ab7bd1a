"""The engines of `minilora bench`: each makes a step on the same weights and the same batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

from .. import backend
from . import peers
from .ours import SHAPES, Grads, Shape, Step, decode, forward, ours, sizes, tokens

__all__ = ["ENGINES", "SHAPES", "Grads", "Shape", "Step", "ours", "sizes", "tokens"]

ENGINES: dict[str, Callable[[str], Step]] = {
    "minilora": ours,
    "minilora full": lambda shape: ours(shape, full=True),
    "minilora recompute": lambda shape: ours(shape, recompute=True),
    "minilora float16": lambda shape: ours(shape, base_dtype="float16"),
    "minilora half": lambda shape: ours(shape, dtype="float16"),
    "torch+peft": lambda shape: peers.torch_step(shape, adapters=True),
    "torch": lambda shape: peers.torch_step(shape, adapters=False),
    "autograd": peers.hips_autograd,
    "floor": peers.floor,
    "base forward": lambda shape: forward(shape, merge=False),
    "merged forward": lambda shape: forward(shape, merge=True),
    "decode": decode,
    "torch decode": peers.torch_decode,
}
# Their losses and gradients must agree.
SAME = ("minilora", "minilora recompute", "torch+peft", "autograd")
AGAINST = {
    "merged forward": "merged forward",
    "base forward": "merged forward",
    "decode": "decode",
    "torch decode": "decode",
}  # engine -> minilora's engine that does the same work (default: "minilora")
NEEDS = {"torch+peft": ("torch", "peft"), "torch": ("torch",), "torch decode": ("torch",),
         "autograd": ("autograd",)}
HOST_ONLY = (*NEEDS, "floor")


def missing(name: str) -> str:
    """Return why an engine cannot run here, or "" if it can."""
    device = not backend.current().on_host
    if device and name in HOST_ONLY:
        return "it runs on the host only"
    if name == "minilora half" and not device:
        return "half precision is fast on a device only"
    absent = [p for p in NEEDS.get(name, ()) if importlib.util.find_spec(p) is None]
    return f"not installed: pip install {' '.join(absent)}" if absent else ""
