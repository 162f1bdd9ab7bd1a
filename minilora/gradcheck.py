"""Finite differences: the test that every gradient has to pass. It is public: use it, too."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .backend import asarray, asnumpy, generator
from .tensor import Tensor, no_grad


def gradcheck(
    f: Callable[..., Tensor], *arrays: Any, eps: float = 1e-5, tolerance: float = 1e-6, rng: int = 0
) -> float:
    """Return the largest error of f's gradients, relative to the size of central differences.
    f: a deterministic function from Tensors to a Tensor of any shape. arrays: its inputs; they are
    checked in float64. The output is summed with random weights, so that every entry counts.
    Raises AssertionError with input, index and both values if the error exceeds `tolerance`.
    """
    inputs = [np.array(asnumpy(a), dtype=np.float64) for a in arrays]
    tensors = [Tensor(x, requires_grad=True) for x in inputs]
    out = f(*tensors)
    if not isinstance(out, Tensor):
        raise TypeError(f"gradcheck: f returned a {type(out).__name__}: it must return a Tensor")
    weights = asarray(generator(rng).standard_normal(out.shape))
    (out * weights).sum().backward()

    def value(which: int, index: tuple[int, ...], step: float) -> float:
        moved = [x.copy() for x in inputs]
        moved[which][index] += step
        with no_grad():
            total: Tensor = (f(*map(Tensor, moved)) * weights).sum()
        return float(total)

    worst = 0.0
    for which, (x, tensor) in enumerate(zip(inputs, tensors)):
        exact = np.zeros_like(x) if tensor.grad is None else asnumpy(tensor.grad)
        estimate = np.zeros_like(x)
        for index in np.ndindex(x.shape):
            step = eps * max(1.0, abs(float(x[index])))
            estimate[index] = (value(which, index, step) - value(which, index, -step)) / (2 * step)
        error = np.abs(exact - estimate) / max(1.0, float(np.abs(estimate).max(initial=0.0)))
        worst = float(np.maximum(worst, error.max(initial=0.0)))  # nan if any error is
        if not worst <= tolerance:
            at = tuple(int(i) for i in np.unravel_index(int(error.argmax()), x.shape))
            raise AssertionError(
                f"input {which}, index {at}: the rule gives {exact[at]:.9g}, central differences "
                f"{estimate[at]:.9g}; error {error[at]:.2e}, allowed {tolerance:.0e}")
    return worst
