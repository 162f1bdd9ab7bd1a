"""How far rounding alone can part a merged model from the unmerged one.

The two compute the same numbers in another order. A product of k terms, in any order, is off by at
most γ(k) · |W| |x|, with γ(k) = k u / (1 - k u) and u half the spacing of floats at 1 (Higham,
Accuracy and Stability of Numerical Algorithms, §3.1). What stays under the bound may be rounding;
what does not is a mistake, such as alpha for alpha / r.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import lora
from .backend import Array, asnumpy, xp
from .models.gpt2 import GPT2
from .nn import Embedding, Linear, Module
from .surgery import evaluating, swap
from .tensor import Tensor, no_grad


def gamma(terms: int, dtype: Any) -> float:
    """γ(n) = n u / (1 - n u), the relative error of n roundings in a row in this dtype."""
    u = float(np.finfo(np.dtype(str(dtype))).eps) / 2
    return terms * u / (1 - terms * u)


def parts(layer: Any) -> tuple[Any, list[lora.Adapter]]:
    """(the layer with W0, the adapters in use) of any layer, adapted or plain."""
    return (layer.base, layer.in_use()) if isinstance(layer, lora.LoRALayer) else (layer, [])


def layer_bound(layer: Linear | lora.LoRALinear, x: Array) -> Array:
    """What |merged(x) - unmerged(x)| stays under, number by number.

    x: (..., k)   out: (..., d), float64. Each side adds up at most k + r + 3 terms per output; the
    merged weight itself is rounded once.
    """
    base, adapters = parts(layer)
    size = abs(_wide(x)) @ abs(_wide(base.W.data)).T
    for adapter in adapters:
        narrow = abs(_wide(x)) @ abs(_wide(adapter.A.data)).T
        size += narrow @ abs(_wide(adapter.B.data)).T * abs(adapter.scale)
    if base.b is not None:
        size += abs(_wide(base.b.data))
    k, dtype = base.W.shape[1], base.dtype  # W is widened to it exactly
    terms = k + sum(adapter.r + 3 for adapter in adapters) + 1
    return size * (2 * gamma(terms, dtype) + gamma(1, dtype))


@dataclass(frozen=True)
class Comparison:
    """The largest difference between merged and unmerged logits, and the bound for that logit."""

    difference: float
    bound: float
    logit: tuple[int, ...]  # (sequence, token, vocabulary)


def compare(model: GPT2, ids: Any) -> Comparison:
    """Run the model on ids (batch, tokens) as it is and merged, and compare the logits.

    The bound is of first order: each product with a weight may be off by its `layer_bound`, and the
    gradient of the logit carries that to the end. Rounding in norms, softmax and attention's own
    products is left out: the worst case of the products counted is far above it.
    """
    with evaluating(model):
        with no_grad():
            before = asnumpy(model(ids).data).astype(np.float64)
            with lora.merged(model):
                after = asnumpy(model(ids).data).astype(np.float64)
        apart = np.abs(after - before)
        at = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
        gradients = [(p, p.grad) for p in model.parameters()]
        for p, _ in gradients:
            p.grad = None
        with _watching(model) as watched:
            model(ids)[at].backward()
            bound = sum(watch.reach() for watch in watched)
        for p, gradient in gradients:  # the caller's, not those of this one logit
            p.grad = gradient
    return Comparison(float(apart[at]), bound, at)


class _Watch(Module):
    """A layer whose output has a zero added that asks for its gradient."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.x, self.zero = layer, Tensor(0.0), Tensor(0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        self.x, self.zero = x, Tensor(xp.zeros_like(y.data), requires_grad=True)
        return y + self.zero

    def reach(self) -> float:
        """How far this layer's rounding can move what was differentiated."""
        return float((abs(_wide(self.zero.grad)) * layer_bound(self.layer, self.x.data)).sum())


class _WatchTable(_Watch):
    """The same for a table whose rows are the tied head's weights."""

    def forward(self, x: Any) -> Tensor:
        y: Tensor = self.layer(x)
        return y

    def project(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer.project(x)
        self.x, self.zero = x, Tensor(xp.zeros_like(y.data), requires_grad=True)
        return y + self.zero

    def reach(self) -> float:
        base, adapters = parts(self.layer)
        x, rows = (abs(_wide(a)) for a in (self.x.data, self.zero.grad))
        size = abs(_wide(base.W.data))
        for adapter in adapters:
            narrow = abs(_wide(adapter.B.data)) @ abs(_wide(adapter.A.data))
            size = size + narrow.T * abs(adapter.scale)
        terms = base.W.shape[1] + sum(adapter.r + 3 for adapter in adapters) + 1
        each = 2 * gamma(terms, base.dtype) + gamma(1, base.dtype)
        return float((rows * (x @ size.T)).sum()) * each


@contextmanager
def _watching(model: GPT2) -> Iterator[list[_Watch]]:
    layers = {path: layer for path, layer in lora.adaptable(model).items() if path != "pos"}
    watches = {
        path: (_WatchTable if isinstance(layer, Embedding | lora.LoRAEmbedding) else _Watch)(layer)
        for path, layer in layers.items()
    }
    swap(model, watches)
    try:
        yield list(watches.values())
    finally:
        swap(model, layers)


def _wide(x: Any) -> Array:
    return x.astype("float64")
