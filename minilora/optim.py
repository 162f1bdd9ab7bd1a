"""Optimizers that work in place, learning-rate schedules, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .backend import Array, asarray, asnumpy, current, fused, xp
from .nn import Parameter

Parameters = Mapping[str, Parameter] | Iterable[Parameter]


class Optimizer:
    """Parameters by name, their learning rate, and state arrays of the same shapes ("m", "v")."""

    state_names: tuple[str, ...] = ()

    def __init__(self, parameters: Parameters, lr: float) -> None:
        if not isinstance(parameters, Mapping):
            parameters = {str(i): p for i, p in enumerate(parameters)}
        if not parameters:
            raise ValueError(f"{type(self).__name__}: there is nothing to train")
        frozen = [name for name, p in parameters.items() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"{type(self).__name__}: {frozen[0]} is frozen: pass model.trainable_parameters()"
            )
        if not (lr >= 0 and math.isfinite(lr)):
            raise ValueError(f"{type(self).__name__}: lr must be finite and not negative, not {lr}")
        self.parameters, self.lr, self.t = dict(parameters), lr, 0
        self.state = {
            name: {s: xp.zeros_like(p.data) for s in self.state_names}
            for name, p in self.parameters.items()
        }

    def zero_grad(self) -> None:
        """Forget the gradients, and free their memory."""
        for p in self.parameters.values():
            p.grad = None

    def step(self) -> None:
        """One update of every parameter that has a gradient, in place."""
        self.t += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                state = [self.state[name][s] for s in self.state_names]
                for pieces in _chunks(p.data, p.grad, *state):
                    self.update(name, *pieces)

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        """Change p and the state in place; g is read only. All are flat and equally long."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of the step count and the state arrays, on the host ("t", "blocks.0....A.m")."""
        arrays = {name: np.array(asnumpy(array)) for name, array in self.arrays().items()}
        return {"t": np.array(self.t), **arrays}

    def arrays(self) -> dict[str, Array]:
        """The state arrays by their names in `state_dict`."""
        return {f"{n}.{s}": a for n, held in self.state.items() for s, a in held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; the names must be the same, KeyError if not."""
        own = self.arrays()
        if own.keys() | {"t"} != state.keys():
            odd = sorted((own.keys() | {"t"}) ^ state.keys())
            raise KeyError(f"{type(self).__name__}: this state is of other parameters: {odd[:5]}")
        for name, array in own.items():
            if state[name].shape != array.shape:
                raise ValueError(f"{type(self).__name__}: {name} is {array.shape} here, "
                                 f"{state[name].shape} in the state")  # fmt: skip
        self.t = int(state["t"])
        for name, array in own.items():
            array[...] = asarray(state[name], array.dtype)


class SGD(Optimizer):
    """p -= lr · m,   m = momentum · m + g"""

    def __init__(self, parameters: Parameters, lr: float, momentum: float = 0.0) -> None:
        self.momentum, self.state_names = momentum, ("m",) if momentum else ()
        super().__init__(parameters, lr)

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        for m in state:
            m *= self.momentum
            m += g
            g = m
        p -= g * float(self.lr)


class Adam(Optimizer):
    """p -= lr · m̂ / (√v̂ + eps)        Kingma & Ba 2015, algorithm 1

    m and v are running means of g and g², m̂ and v̂ those without their start at 0. Where √v̂ + eps
    is 0 the step is 0, so that eps = 0 is allowed.
    """

    state_names = ("m", "v")
    weight_decay, decays = 0.0, set[str]()

    def __init__(
        self, parameters: Parameters, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr)
        self.betas, self.eps = betas, eps

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        (b1, b2), least = self.betas, float(np.finfo(str(p.dtype)).smallest_subnormal)
        lr, spread = float(self.lr), 1 / math.sqrt(1 - b2**self.t)
        kept, rate = 1 - lr * self.weight_decay * (name in self.decays), lr / (1 - b1**self.t)
        _adam(p, g, *state, b1, 1 - b1, b2, 1 - b2, spread, max(self.eps, least), rate, kept)


@fused
def _adam(p, g, m, v, b1, c1, b2, c2, spread, eps, rate, kept):  # type: ignore[no-untyped-def]
    """spread is √(v̂/v), rate is lr · m̂/m"""
    p *= kept
    m *= b1
    m += g * c1
    v *= b2
    work = g * g
    work *= c2
    v += work
    xp.sqrt(v, out=work)
    work *= spread
    work += eps
    xp.divide(m, work, out=work)
    work *= rate
    p -= work


class AdamW(Adam):
    """Adam, and p -= lr · weight_decay · p apart from it        Loshchilov & Hutter 2019

    `exclude`: names or globs of parameters that do not decay; by default biases and norms.
    """

    def __init__(
        self, parameters: Parameters, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, exclude: Sequence[str] = ("*.b", "*.g"),
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr, betas, eps)
        self.weight_decay = weight_decay
        self.decays = {n for n in self.parameters if not any(fnmatchcase(n, e) for e in exclude)}


def _chunks(*arrays: Array) -> Iterator[list[Array]]:
    flat = [a.reshape(-1) for a in arrays]
    piece = current().piece  # all that an update touches stays in the cache
    for start in range(0, flat[0].size, piece):
        yield [a[start : start + piece] for a in flat]


def linear_schedule(peak: float, steps: int, warmup: int = 0) -> Callable[[int], float]:
    """step -> lr: from 0 up to `peak` over `warmup` steps, then straight down to 0 at `steps`."""
    return lambda step: peak * min((step + 1) / (warmup + 1), max(0.0, _left(step, steps, warmup)))


def cosine_schedule(
    peak: float, steps: int, warmup: int = 0, floor: float = 0.0
) -> Callable[[int], float]:
    """step -> lr: up to `peak` over `warmup` steps, then half a cosine down to `floor`."""

    def lr(step: int) -> float:
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        left = min(1.0, max(0.0, _left(step, steps, warmup)))
        return floor + (peak - floor) * 0.5 * (1 - math.cos(math.pi * left))

    return lr


def _left(step: int, steps: int, warmup: int) -> float:
    return (steps - step) / max(1, steps - warmup)


def clip_grad_norm(parameters: Parameters, max_norm: float) -> Any:
    """Scale all gradients by one factor so that their global norm is at most `max_norm`.

    Returns the norm before: a float, or on a device an array (), so that nothing has to wait for
    it. Gradients are replaced, not written to.
    """
    if not max_norm > 0:
        raise ValueError(f"clip_grad_norm: max_norm must be positive, not {max_norm}")
    held = parameters.values() if isinstance(parameters, Mapping) else parameters
    grads = [(p, p.grad) for p in held if p.grad is not None]
    if not grads:
        return 0.0
    wide = (piece.astype("float64") for _, g in grads for (piece,) in _chunks(g))
    norm = xp.sqrt(sum((piece * piece).sum() for piece in wide))  # one number for all
    if not (current().numbers_are_free and norm <= max_norm):
        factor = max_norm / xp.maximum(norm, max_norm)
        for p, g in grads:
            p.grad = g * factor.astype(g.dtype, copy=False)
    return norm
