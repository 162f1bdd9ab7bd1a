"""Modules: plain objects that hold parameters. No registration, no base `__init__`, no hooks."""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from . import display, ops
from .backend import Rng, asnumpy, generator, normal, xp
from .checks import real
from .files import checkpoint
from .tensor import Tensor


class Parameter(Tensor):
    """A Tensor that a module owns; it is trained unless `requires_grad` is set to False."""
    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)
        if not self.data.flags.c_contiguous:  # kernels write through a flat view
            self.data = self.data.copy(order="C")

class Module:
    """Attributes, lists and dicts are walked in order of assignment, and that names everything."""
    training = True

    @property
    def locked(self) -> str:
        """Why nothing may be loaded into it now; "": it may. A copy is never locked."""
        return _LOCKED.get(self, "")
    @locked.setter
    def locked(self, why: str) -> None:
        _LOCKED[self] = why

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward")
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.forward(*args, **kwargs)
    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        """(name, module or parameter) directly below, such as ("blocks.0", Block)."""
        for name, value in vars(self).items():
            for path, item in _flat(name, value):
                if isinstance(item, Module | Parameter):
                    yield path, item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """("", self), then every module below with its path."""
        yield prefix, self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """("blocks.0.attn.q.W", parameter), each parameter once, in order of assignment."""
        seen: set[Parameter] = set()
        for name, child in self.children():
            below = [("", child)] if isinstance(child, Parameter) else child.named_parameters()
            for path, p in below:
                if p not in seen:
                    seen.add(p)
                    yield f"{name}.{path}" if path else name, p

    def parameters(self) -> list[Parameter]:
        return [p for _, p in self.named_parameters()]
    def trainable_parameters(self) -> dict[str, Parameter]:
        """The parameters that require a gradient, by name: what an optimizer takes."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
    def requires_grad_(self, flag: bool = True) -> Self:
        """Train all of it, or (False) freeze all of it."""
        for p in self.parameters():
            p.requires_grad, p.grad = flag, None
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on (off) here and below. Nothing else depends on it."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)
    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter, by name, on the host."""
        return {name: np.array(asnumpy(p.data)) for name, p in self.named_parameters()}
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same name, all of them or none.
        Raises KeyError for missing or unexpected names (unless strict=False), ValueError for sizes.
        """
        if self.locked:
            raise RuntimeError(f"load_state_dict: {self.locked}")
        own = {name: p.data for name, p in self.named_parameters()}
        checkpoint.fill(own, state, "load_state_dict", strict)

    def extra_repr(self) -> str:
        """What the tree says of this module beside its name, such as r and alpha."""
        return ""
    def __repr__(self) -> str:
        """The tree: `*` trained, `.` frozen, shapes, counts; equal neighbours are shown once."""
        return display.tree(self)
    def summary(self) -> str:
        """The tree, then how many parameters are trained and what training them takes in bytes."""
        return display.summary(self)

_LOCKED: WeakKeyDictionary[Module, str] = WeakKeyDictionary()

def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, list | tuple | dict):
        yield name, value
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(f"{name}.{key}", item)

class Linear(Module):
    """y = x Wᵀ + b        x: (..., d_in)   W: (d_out, d_in)   b: (d_out,) or None
    dtype: what it computes in; a frozen W may be stored narrower.
    """

    def __init__(
        self, d_in: int, d_out: int, bias: bool = True, *,
        rng: Rng = None, std: float | None = None, dtype: Any = "float32") -> None:
        self.dtype, std = np.dtype(dtype), 1 / math.sqrt(d_in) if std is None else std
        self.W = Parameter(normal(generator(rng), (d_out, d_in), std, self.dtype))
        self.b = Parameter(xp.zeros(d_out, self.dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.W, self.b)

class Embedding(Module):
    """W[ids]        ids: (...) integers on the host   W: (n, d)   out: (..., d)
    dtype: of what it puts out; a frozen W may be stored narrower.
    """

    def __init__(
        self, n: int, d: int, *, rng: Rng = None, std: float = 0.02, dtype: Any = "float32"
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.W = Parameter(normal(generator(rng), (n, d), std, self.dtype))

    def forward(self, ids: Any) -> Tensor:
        return ops.embedding(self.W, ids, dtype=self.dtype)
    def project(self, x: Tensor) -> Tensor:
        """x Wᵀ, the tied head: one score per row of the table. x: (..., d) -> (..., n)"""
        return ops.linear(x, self.W)

class LayerNorm(Module):
    """(x - mean) / √(variance + eps) · g + b over the last axis (Ba et al. 2016)."""

    def __init__(self, d: int, eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        self.g, self.b, self.eps = Parameter(xp.ones(d, dtype)), Parameter(xp.zeros(d, dtype)), eps
    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.g, self.b, eps=self.eps)

class Dropout(Module):
    """In training, each number is 0 with probability `rate`, else x / (1 - rate); else x itself."""

    def __init__(self, rate: float, *, rng: Rng = None) -> None:
        self.rate, self.rng = real("Dropout", "rate", rate, "[0, 1)"), generator(rng)
    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.rate, self.rng) if self.training and self.rate else x
    def extra_repr(self) -> str:
        return f" rate {self.rate:g}"

@contextlib.contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Inside, dropout is off in all of the model; afterwards each module is as it was."""
    before = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def generators(model: Module) -> dict[str, np.random.Generator]:
    """The generators that the model draws dropout from, by the path of their module."""
    held = ((path, getattr(module, "rng", None)) for path, module in model.named_modules())
    return {path: rng for path, rng in held if isinstance(rng, np.random.Generator)}
