"""Optimizers that work in place, learning-rate schedules, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from .backend import Array, asarray, asnumpy, current, xp
from .backend.choices import has_kernel
from .nn import Parameter

Parameters = Mapping[str, Parameter] | Iterable[Parameter]


class Optimizer:
    """Parameters by name, their learning rate, and state arrays of the same shapes ("m", "v").

    A parameter narrower than float32 is trained on a copy in float32, its "master", and rounded
    after each step: in half precision most updates would be lost (Micikevicius et al. 2018, §3.1).
    """

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
        self.state: dict[str, dict[str, Array]] = {}
        for name, p in self.parameters.items():
            wide = np.promote_types(str(p.dtype), "float32")
            self.state[name] = {s: xp.zeros(p.shape, wide) for s in self.state_names}
            if p.dtype != wide:
                self.state[name]["master"] = p.data.astype(wide)

    def zero_grad(self) -> None:
        """Forget the gradients, and free their memory."""
        for p in self.parameters.values():
            p.grad = None

    def step(self) -> None:
        """One update of every parameter that has a gradient, in place."""
        self.t += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                held = self.state[name]
                wide = held.get("master", p.data)
                g = p.grad.astype(wide.dtype, copy=False)
                self.update(name, wide, g, *(held[s] for s in self.state_names))
                if wide is not p.data:
                    p.data[...] = wide

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        """Change p and the state in place; g is read only. All have the parameter's shape."""
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
        own, kind = self.arrays(), type(self).__name__
        if odd := sorted((own.keys() | {"t"}) ^ state.keys()):
            raise KeyError(f"{kind}: this state is of other parameters: {odd[:5]}")
        for name, array in own.items():
            if state[name].shape != array.shape:
                raise ValueError(
                    f"{kind}: {name} is {array.shape} here, {state[name].shape} in the state"
                )
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
            m[...] = self.momentum * m + g
            g = m
        p -= float(self.lr) * g


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
        (b1, b2), lr = self.betas, float(self.lr)
        eps = max(self.eps, float(np.finfo(str(p.dtype)).smallest_subnormal))
        adam(p, g, *state, betas=self.betas, eps=eps, rate=lr / (1 - b1**self.t),
             spread=1 / math.sqrt(1 - b2**self.t),
             kept=1 - lr * self.weight_decay * (name in self.decays))  # fmt: skip


@has_kernel
def adam(
    p: Array, g: Array, m: Array, v: Array, *, betas: tuple[float, float], rate: float,
    spread: float, eps: float, kept: float,
) -> None:  # fmt: skip
    """One step, in place. rate is lr · m̂/m, spread is √(v̂/v), kept what decay leaves of p."""
    b1, b2 = betas
    m[...] = b1 * m + (1 - b1) * g
    v[...] = b2 * v + (1 - b2) * (g * g)
    p[...] = kept * p - rate * m / (spread * xp.sqrt(v) + eps)


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
    size = current().piece  # a large gradient is not widened all at once
    flat = (g.reshape(-1)[i : i + size] for _, g in grads for i in range(0, g.size, size))
    norm = xp.sqrt(sum((x * x).sum() for x in (piece.astype("float64") for piece in flat)))
    if not current().peek(norm <= max_norm, False):
        factor = max_norm / xp.maximum(norm, max_norm)  # one number for all
        for p, g in grads:
            p.grad = g * factor.astype(g.dtype, copy=False)
    return norm
