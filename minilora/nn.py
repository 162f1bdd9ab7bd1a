"""Modules: plain objects with parameters. No registration, no base `__init__`, no hooks."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np

from . import display, ops
from .backend import Quantised, Rng, asnumpy, generator, normal, xp
from .backend.blocks import block, restoring
from .checks import real
from .state_dict import fill
from .tensor import Tensor
from .words import our_words


class Parameter(Tensor):
    """A Tensor that belongs to a module. It is trained unless `requires_grad` is False."""
    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

class Module:
    """Parameters and modules in attributes, lists and dicts, named in order of assignment."""
    training = True

    @property
    def locked(self) -> str:
        """Why no state can be loaded now; "": it can. A copy is never locked."""
        return _LOCKED.get(self, "")
    @locked.setter
    def locked(self, why: str) -> None:
        _LOCKED[self] = why

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no forward")
    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.forward(*args, **kwargs)
    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        """Yield (name, module or parameter) directly below, such as ("blocks.0", Block)."""
        for name, value in vars(self).items():
            for path, item in _flat(name, value):
                if isinstance(item, Module | Parameter):
                    yield path, item
                elif isinstance(item, Tensor) and item.requires_grad and item._node is None:
                    raise TypeError(
                        f"{type(self).__name__}.{path} is a Tensor that requires a gradient: make "
                        "it an nn.Parameter, so that it is trained and saved")

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield ("", self), then every module below with its path."""
        yield prefix, self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield ("blocks.0.attn.q.W", parameter), each parameter once, in order of assignment."""
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
        """Return the parameters that require a gradient, by name, for an optimizer."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
    def requires_grad_(self, flag: bool = True) -> Self:
        """Train all parameters, or freeze them (False)."""
        for p in self.parameters():
            p.requires_grad, p.grad = flag, None
        return self

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on or off, here and below. Nothing else depends on the mode."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)
    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of every parameter, by name, on the host."""
        return {name: np.array(asnumpy(p.data)) for name, p in self.named_parameters()}
    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters of the same name, all of them or none.
        Raises KeyError for missing or unexpected names unless strict=False, ValueError for shapes.
        """
        if self.locked:
            raise RuntimeError(f"load_state_dict: {self.locked}")
        own = {name: p.data for name, p in self.named_parameters()}
        fill(own, state, "load_state_dict", strict)

    def extra_repr(self) -> str:
        """Return text for this module's line in the tree, such as r and alpha."""
        return ""
    def __repr__(self) -> str:
        """Return the tree: `*` trained, `.` frozen, shapes, counts; equal neighbours merged."""
        return display.tree(self)
    def summary(self) -> str:
        """Return the tree, the number of trained parameters, and the bytes that training needs."""
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
    dtype: of the computation; a frozen W may be stored in a narrower one, or as codes.
    """

    @our_words
    def __init__(
        self, d_in: int, d_out: int, bias: bool = True, *,
        rng: Rng = None, std: float | None = None, dtype: Any = "float32") -> None:
        self.dtype, std = np.dtype(dtype), 1 / math.sqrt(d_in) if std is None else std
        W = normal(generator(rng), (d_out, d_in), std, self.dtype)
        self.W = Parameter.of(W, requires_grad=True)
        self.b = Parameter(xp.zeros(d_out, dtype=self.dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(Q := self.W.data, Quantised):
            return ops.linear(x, self.W, self.b)
        if self.W.requires_grad:
            raise RuntimeError(f"Linear: W is stored as {Q.format} codes, which cannot be trained: "
                               "freeze it, W.requires_grad = False, and train an adapter")
        return ops.quantised_linear(x, *map(Tensor.of, Q.arrays), self.b, shape=Q.shape)

class Embedding(Module):
    """W[ids]        ids: (...) integers on the host   W: (n, d)   out: (..., d)
    dtype: of the output; a frozen W may be stored in a narrower one.
    """

    @our_words
    def __init__(
        self, n: int, d: int, *, rng: Rng = None, std: float = 0.02, dtype: Any = "float32"
    ) -> None:
        self.dtype = np.dtype(dtype)
        W = normal(generator(rng), (n, d), std, self.dtype)
        self.W = Parameter.of(W, requires_grad=True)

    def forward(self, ids: Any) -> Tensor:
        return ops.embedding(self.W, ids, dtype=self.dtype)
    def project(self, x: Tensor) -> Tensor:
        """x Wᵀ, the tied head: one score per row of the table        x: (..., d) -> (..., n)"""
        return ops.linear(x, self.W)

class LayerNorm(Module):
    """(x - mean) / √(variance + eps) · g + b over the last axis (Ba et al. 2016)."""

    @our_words
    def __init__(self, d: int, eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        self.g, self.b = Parameter(xp.ones(d, dtype=dtype)), Parameter(xp.zeros(d, dtype=dtype))
        self.eps = eps
    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.g, self.b, eps=self.eps)

class RMSNorm(Module):
    """x / √(mean of x² + eps) · g over the last axis (Zhang & Sennrich 2019)."""

    @our_words
    def __init__(self, d: int, eps: float = 1e-6, *, dtype: Any = "float32") -> None:
        self.g, self.eps = Parameter(xp.ones(d, dtype=dtype)), eps
    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.g, eps=self.eps)

class Dropout(Module):
    """In training, 0 with probability `rate`, else x / (1 - rate), number by number; else x."""

    @our_words
    def __init__(self, rate: float, *, rng: Rng = None) -> None:
        self.rate, self.rng = real("Dropout", "rate", rate, "[0, 1)"), generator(rng)
    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.rate, self.rng) if self.training and self.rate else x
    def extra_repr(self) -> str:
        return f" rate {self.rate:g}"

def evaluating(model: Module) -> AbstractContextManager[None]:
    """Switch dropout off in the block, and restore each module's mode after it."""
    return in_mode(model, training=False)

@block
def in_mode(model: Module, training: bool) -> Iterator[None]:
    """Switch dropout on or off in the block, and restore each module's mode after it."""
    before = [(module, module.training) for _, module in model.named_modules()]

    def restore() -> None:
        for module, mode in before:
            module.training = mode

    with restoring(restore):
        model.train(training)
        yield

def generators(model: Module) -> dict[str, np.random.Generator]:
    """Return the generators that dropout draws from, by the path of their module."""
    pairs = ((path, getattr(module, "rng", None)) for path, module in model.named_modules())
    return {path: rng for path, rng in pairs if isinstance(rng, np.random.Generator)}
