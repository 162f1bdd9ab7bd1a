"""Optimizers that update in place: SGD, Adam, AdamW. Schedules and clipping: schedules.py."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..adapters.patterns import matching
from ..backend import Array, asarray, asnumpy, xp
from ..backend.flags import own_flags
from ..backend.writes import wrote
from ..checks import describe, real
from ..nn import Parameter
from ..state_dict import fill
from ..tensor import Tensor
from ..words import our_words
from .adam import adam

Parameters = Mapping[str, Parameter] | Iterable[Parameter]

def named(who: str, parameters: Parameters, trained: bool = False) -> dict[str, Parameter]:
    """Return the parameters by name; parameters without names are called "0", "1", and so on.

    Raises TypeError for anything but parameters, such as a model. Raises ValueError for a duplicate
    and, if `trained`, for a frozen parameter or an empty list.
    """
    remedy = "pass model.trainable_parameters()"
    if isinstance(parameters, Tensor) or not isinstance(parameters, Iterable):
        raise TypeError(f"{who}: it takes parameters, not {describe(parameters)}: {remedy}")
    if not isinstance(parameters, Mapping):
        parameters = {str(i): p for i, p in enumerate(parameters)}
    names: dict[Parameter, str] = {}
    for name, p in parameters.items():
        if not isinstance(p, Parameter):
            raise TypeError(f"{who}: parameter {name} is {describe(p)}, not a Parameter: {remedy}")
        if names.setdefault(p, name) != name:
            raise ValueError(f"{who}: parameters {names[p]} and {name} are the same: pass it once")
        if trained and not p.requires_grad:
            raise ValueError(f"{who}: parameter {name} is frozen: {remedy}")
    if trained and not names:
        raise ValueError(
            f"{who}: nothing to train: all parameters are frozen, or the iterator is empty"
        )
    return dict(parameters)


def why_idle(parameters: Mapping[str, Parameter]) -> str:
    """Return the reason why no parameter has a gradient, with the remedy."""
    if not any(p.requires_grad for p in parameters.values()):
        return (
            "all its parameters have been frozen since it was created: create it after "
            "lora.attach, from model.trainable_parameters()"
        )
    return (
        "none of its parameters has a gradient: call loss.backward() between zero_grad() and "
        "step(), on a loss that depends on them (an inactive adapter gets no gradient)"
    )

class Optimizer:
    """Parameters by name, a learning rate, and state arrays of the parameters' shapes ("m", "v").
    A parameter narrower than float32 has a float32 copy, its "master". The step updates the master
    and rounds it: in half precision most updates would vanish (Micikevicius et al. 2018, §3.1).
    """
    state_names: tuple[str, ...] = ()

    @our_words
    def __init__(self, parameters: Parameters, lr: float) -> None:
        self.who = type(self).__name__
        self.parameters = named(self.who, parameters, trained=True)
        self.lr, self.t = real(self.who, "lr", lr, "[0, inf)"), 0
        self.state: dict[str, dict[str, Array]] = {}
        for name, p in self.parameters.items():
            wide = np.promote_types(str(p.dtype), "float32")
            self.state[name] = {s: xp.zeros(p.shape, dtype=wide) for s in self.state_names}
            if p.dtype != wide:
                self.state[name]["master"] = p.data.astype(wide)

    def zero_grad(self) -> None:
        """Set all gradients to None, which frees their memory."""
        for p in self.parameters.values():
            p.grad = None
    @own_flags
    def step(self) -> None:
        """Update every parameter that has a gradient, in place; RuntimeError if none has."""
        real(self.who, "lr", self.lr, "[0, inf)")
        if all(p.grad is None for p in self.parameters.values()):
            raise RuntimeError(f"{self.who}: {why_idle(self.parameters)}")
        self.t += 1
        for name, p in self.parameters.items():
            if p.grad is not None:
                state = self.state[name]
                wide: Array = state.get("master", p.data)
                if wide is not p.data:  # p may have been written to since the last step
                    xp.copyto(wide, p.data, where=wide.astype(p.dtype) != p.data)
                g = p.grad.astype(wide.dtype, copy=False)
                self.update(name, wide, g, *(state[s] for s in self.state_names))
                if wide is not p.data:
                    p.data[...] = wide
                wrote(p.data)

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        """Update p and the state in place; g is read-only. All have the parameter's shape."""
        raise NotImplementedError
    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the step count and the state arrays to the host ("t", "blocks.0....A.m")."""
        arrays = {name: np.array(asnumpy(array)) for name, array in self.arrays().items()}
        return {"t": np.array(self.t), **arrays}
    def arrays(self) -> dict[str, Array]:
        """Return the state arrays by their names in `state_dict`."""
        return {f"{n}.{s}": a for n, state in self.state.items() for s, a in state.items()}
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict` of the same parameters; KeyError or ValueError for another."""
        t = asarray(np.array(self.t, "uint64"))
        fill({"t": t, **self.arrays()}, state, self.who,
             then=lambda: setattr(self, "t", int(asnumpy(t))))

class SGD(Optimizer):
    """p -= lr · m,   m = momentum · m + g"""

    @our_words
    def __init__(self, parameters: Parameters, lr: float, momentum: float = 0.0) -> None:
        self.momentum = real("SGD", "momentum", momentum, "[0, 1)")
        self.state_names = ("m",) if momentum else ()
        super().__init__(parameters, lr)
    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        for m in state:
            m[...] = self.momentum * m + g
            g = m
        p -= float(self.lr) * g

class Adam(Optimizer):
    """p -= lr · m̂ / (√v̂ + eps)        Kingma & Ba 2015, algorithm 1
    m and v are running means of g and g²; m̂ and v̂ are corrected for their start at 0. Where
    √v̂ + eps is 0 the step is 0, so eps = 0 is allowed.
    """
    state_names = ("m", "v")
    weight_decay, decays = 0.0, set[str]()

    @our_words
    def __init__(
        self, parameters: Parameters, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(parameters, lr)
        b1, b2 = (real(self.who, "each of betas", beta, "[0, 1)") for beta in betas)
        self.betas, self.eps = (b1, b2), real(self.who, "eps", eps, "[0, inf)")

    def update(self, name: str, p: Array, g: Array, *state: Array) -> None:
        (b1, b2), lr = self.betas, float(self.lr)
        eps = max(self.eps, float(np.finfo(str(p.dtype)).smallest_subnormal))
        adam(p, g, *state, betas=self.betas, eps=eps, rate=lr / (1 - b1**self.t),
             spread=1 / math.sqrt(1 - b2**self.t),
             kept=1 - lr * self.weight_decay * (name in self.decays))

class AdamW(Adam):
    """Adam with decoupled decay, p -= lr · weight_decay · p        Loshchilov & Hutter 2019
    exclude: patterns of the parameters without decay, by name; None: biases and norms, that is, all
    with fewer than two axes. Raises ValueError for a pattern that matches nothing.
    """

    @our_words
    def __init__(
        self, parameters: Parameters, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, exclude: Sequence[str] | None = None) -> None:
        super().__init__(parameters, lr, betas, eps)
        self.weight_decay = real(self.who, "weight_decay", weight_decay, "[0, inf)")
        spared = [n for n, p in self.parameters.items() if len(p.shape) < 2]
        if exclude is not None:
            patterns = [exclude] if isinstance(exclude, str) else exclude
            spared = matching(self.parameters, patterns, f"{self.who}: exclude: no parameter")
        self.decays = self.parameters.keys() - spared
