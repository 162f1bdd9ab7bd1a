"""All roundings of a forward pass, and how much they change one number of the result.

The pass runs again in float64. There each op is followed by an identity op. In the backward pass
that op gets the gradient, and adds the effect of the first op's roundings on the result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import ops
from ..adapters import Adapted, merged
from ..adapters.places import adaptable, adapted
from ..adapters.protocol import row_lengths
from ..backend import Array, current, xp
from ..nn import Embedding, Module
from ..ops.neural import turns
from ..tensor import OPS, Tensor, op

At = tuple[int, ...]


def unit(dtype: Any) -> float:
    """Return u, the largest relative error of one rounding in this dtype."""
    return float(np.finfo(str(dtype)).eps) / 2


def least(dtype: Any) -> float:
    """Return η, the smallest positive float of this dtype."""
    return float(np.finfo(str(dtype)).smallest_subnormal)


def twin(model: Module, dtype: Any = None) -> Module:
    """Return a copy of the model, with dropout off and all parameters frozen.

    Modules are copied; arrays are shared, and never written here. dtype: convert arrays and layers
    to it.
    """
    arrays = {
        id(p.data): p.data if dtype is None else p.data.astype(dtype, copy=False)
        for p in model.parameters()
    }
    other = copy.deepcopy(model, arrays).eval().requires_grad_(False)  # deepcopy uses those
    for _, module in other.named_modules():
        if dtype is not None and hasattr(module, "dtype"):
            module.dtype = np.dtype(dtype)
    return other


class Moved:
    """The sums over all roundings to `dtype` of their effects on the result.

    sum: Σ|c| and squares: Σc², in units of u (see `compare`); lost: by underflow, in units of η.
    """

    def __init__(self, dtype: Any) -> None:
        self.sum = self.squares = self.lost = 0.0
        self.finer = unit("float64") / unit(dtype)  # of a rounding in float64
        self.finest = least("float64") / least(dtype)

    def add(self, g: Array | None, size: Array, roundings: int, lost: Any) -> None:
        """Add numbers of this size, with `roundings` roundings and `lost` underflows in each.

        g: the gradient of the result there; None: it does not depend on them.
        """
        if g is not None:
            c, read = abs(g) * size, current().read
            self.sum += roundings * read(c.sum(), 0.0)
            self.squares += roundings * read((c * c).sum(), 0.0)
            self.lost += read((abs(g) * lost).sum(), 0.0)


def roundings_as_it_is(model: Module, ids: Any, at: At, moved: Moved) -> None:
    """Add all roundings of the adapted model in the result model(ids)[at].

    Each rounding affects one number, with exceptions that affect every token: A and B, which are
    rounded in half precision; the product of B and s = alpha / r; s itself; and DoRA's m / |V|.
    """
    used = [(module, module.adapters[name]) for module in adapted(model).values()
            for name in module.active]
    for _, adapter in used:
        adapter.requires_grad_()
    _run(model, ids, at, moved)
    total = 0.0
    for module, adapter in used:
        of_scale = 0.0
        for scale, B, A in adapter.factors() or ():
            if not scale:
                continue
            moved.add(A.grad, abs(A.data), 1, 1)
            moved.add(B.grad, abs(B.data), 2, 1 + 1 / abs(scale))
            if B.grad is not None:
                c = abs(current().read((B.grad * B.data).sum(), 0.0))
                of_scale += c
                moved.lost += c / abs(scale)
        total += of_scale
        if (m := adapter.row_scale()) is not None:
            moved.add(m.grad, abs(m.data) * lengths(module, adapter)[1], 1, 1)
    moved.sum, moved.squares = moved.sum + total, moved.squares + total * total


def roundings_merged(model: Module, ids: Any, at: At, moved: Moved) -> None:
    """Add all roundings of the merged model, whose W is rounded once, for all tokens."""
    modules = {path: m for path, m in adapted(model).items()
               if any(m.adapters[name].factors() for name in m.active)}
    with merged(model):
        weights = {path: layer.W for path, layer in adaptable(model).items() if path in modules}
        for W in weights.values():
            W.requires_grad = True
        _run(model, ids, at, moved)
    for path, W in weights.items():
        module = modules[path]
        W0 = abs(module.base.W.data)
        for adapter in (module.adapters[name] for name in module.active):  # ΔW is in float64
            size, factors = oriented(module, added(adapter)), adapter.factors() or ()
            rank = sum(B.shape[1] for _, B, _ in factors)
            steps, most = rank + 1 + len(module.active), max(abs(s) for s, _, _ in factors)
            if (m := adapter.row_scale()) is not None:  # V, |V|, and W0 subtracted and added
                n, off = lengths(module, adapter)
                size = (abs(m.data) / n)[:, None] * (W0 + size)
                moved.add(W.grad, abs(W.data) * (off + 2)[:, None] * moved.finer, 1, 1)
                moved.add(W.grad, W0 * moved.finer, 2, 0)
            moved.add(W.grad, size * moved.finer, steps, steps * (1 + most) * moved.finest)
        moved.add(W.grad, abs(W.data), 1, 1)


def oriented(module: Adapted, BA: Array) -> Array:
    """Return B A in W's shape: transposed for a table."""
    return BA.T if isinstance(module.base, Embedding) else BA


def added(adapter: Any) -> Array:
    """Return Σ |s| |B| |A|, the sum of the sizes of all terms of ΔW."""
    terms = [abs(s) * (abs(B.data) @ abs(A.data)) for s, B, A in adapter.factors()]
    return sum(terms[1:], terms[0])


def lengths(module: Any, adapter: Any) -> tuple[Array, Array]:
    """Return (|V|, the error of m / |V| in roundings), each (d,), with V = W0 + Σ s B A.

    V has an error of γ(r + 2) times |W0| + Σ |s| |B| |A|, row by row. Then come k squares, whose
    sum's error the root halves, and the division.
    """
    W0 = module.base.W.data
    factors = adapter.factors()
    V = W0 + sum(s * (B.data @ A.data) for s, B, A in factors)
    rank = sum(B.shape[1] for _, B, _ in factors)
    n, most = row_lengths(V), xp.sqrt(((abs(W0) + added(adapter)) ** 2).sum(axis=1))
    return n, (rank + 2) * most / n + W0.shape[1] / 2 + 3


def _run(model: Module, ids: Any, at: At, moved: Moved) -> None:
    counted = {name: _counted(OPS[name], rule, moved) for name, rule in ROUNDINGS.items()}
    counted["lora_linear"] = _counted(_lora_linear, _lost_in_lora, moved)
    with ops.replaced(**COMPOSED | counted):
        result = model(ids)[at]
    result.backward()


def _counted(of: Callable[..., Tensor], rule: Rule, moved: Moved) -> Callable[..., Tensor]:
    """Return the op, followed by an identity op that gets the gradient of its output."""

    def apply(*inputs: Any, **settings: Any) -> Tensor:
        y = of(*inputs, **settings)
        arrays = (x.data if isinstance(x, Tensor) else x for x in inputs)
        roundings, size, lost = rule(y.data, *arrays, **settings)

        @op
        def rounded(x: Array) -> Any:
            def dx(g: Array) -> Array:
                moved.add(g, size, roundings, lost)
                return g

            return x, (dx,)

        return rounded(y if y.requires_grad else Tensor.of(y.data, requires_grad=True))

    return apply


# For each op that rounds: (output, arrays, settings) -> (roundings in each number, the size of the
# rounded numbers, the number of possible underflows). A sum of n products counts as n roundings of
# the sum of their sizes, in any order: one of its product and n - 1 of sums. Ops that do not round
# (moves, signs) are not listed, nor are those after the logits, log_softmax and the loss.

Rule = Callable[..., tuple[int, Array, Any]]


def _elementwise(roundings: int, lost: int) -> Rule:
    return lambda y, *_: (1, roundings * abs(y), lost)


def _sum(y: Array, x: Array, **settings: Any) -> tuple[int, Array, Any]:
    return x.size // y.size, abs(x).sum(**settings), 0


def _mean(y: Array, x: Array, **settings: Any) -> tuple[int, Array, Any]:
    return x.size // y.size + 1, abs(x).mean(**settings), 1


def _matmul(y: Array, a: Array, b: Array) -> tuple[int, Array, Any]:
    n = a.shape[-1]
    return n + 1, abs(a) @ abs(b), n + 1  # one more: attention's kernel divides afterwards


def _linear(y: Array, x: Array, W: Array, b: Array | None = None) -> tuple[int, Array, Any]:
    size, n = abs(x) @ abs(W).T, x.shape[-1]
    return n + 1, size if b is None else size + abs(b), n


def _gelu(y: Array, x: Array, **_: Any) -> tuple[int, Array, Any]:
    return 1, 16 * abs(x), 16 * (1 + abs(x))  # x Φ: Φ is at most 1, and good to 16 u


ROUNDINGS: dict[str, Rule] = {
    **dict.fromkeys(("add", "sub"), _elementwise(1, 0)),  # sums do not underflow
    **dict.fromkeys(("mul", "div"), _elementwise(1, 1)),
    **dict.fromkeys(("exp", "log", "sqrt", "tanh"), _elementwise(8, 1)),  # NumPy's: 4 ulp
    "power": lambda y, *_, **__: (1, 8 * abs(y), 1),
    "sigmoid": _elementwise(11, 1),  # eˣ, a sum, a quotient
    "sum": _sum, "mean": _mean, "matmul": _matmul, "linear": _linear, "gelu": _gelu,
}


# Ops that are composed of those above, by the formulas of minilora/ops.


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    e = ops.exp(x - x.data.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def _layer_norm(x: Tensor, gain: Any, shift: Any, *, eps: float = 1e-5) -> Any:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / ops.sqrt(variance + eps) * gain + shift


def _rms_norm(x: Tensor, gain: Any, *, eps: float = 1e-6) -> Any:
    return x / ops.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def _swiglu(x: Tensor, y: Tensor) -> Tensor:
    return x * ops.sigmoid(x) * y


def _rotary(x: Tensor, *, heads: int, theta: float = 10000.0, start: int = 0) -> Tensor:
    (batch, tokens, d), half = x.shape, x.shape[2] // heads // 2
    cos, sin = map(Tensor.of, turns(start, tokens, half, theta, x.dtype))  # type: ignore[no-untyped-call]
    pairs = x.reshape(batch, tokens, heads, 2, half)
    a, b = pairs[..., 0, :], pairs[..., 1, :]
    return ops.concat(a * cos - b * sin, b * cos + a * sin, axis=3).reshape(batch, tokens, d)


def _lora_linear(x: Any, W: Any, b: Any, A: Any, B: Any, mask: Any = None, *, scale: float) -> Any:
    return ops.linear(x, W, b) + ops.linear(ops.linear(x, A), B) * scale


def _lost_in_lora(y: Array, x: Any, W: Any, b: Any, A: Any, *_: Any, **__: Any) -> Any:
    """Kernels compute (s B) (A x): if s is small, the r products underflow more than those by B."""
    return 0, y, len(A)


COMPOSED: dict[str, Callable[..., Tensor]] = {
    "softmax": _softmax, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "swiglu": _swiglu,
    "rotary": _rotary, "lora_linear": _lora_linear,
}
