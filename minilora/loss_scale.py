"""Loss scaling, so that gradients in half precision do not vanish (Micikevicius et al. 2018, §3.2).

A half ends at 6e-8, and most gradients of a fine-tuned model are smaller. The loss times a power of
two makes every gradient larger by that factor, without rounding; where a gradient arrives, in
float32, the factor is taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .backend import Array, asarray, asnumpy, xp
from .optim import Optimizer
from .tensor import Tensor

LEAST, MOST = 2.0**-10, 2.0**24  # below, no gradient is left to save; it grows no further


class LossScale:
    """The scale, and what becomes of it: fit(..., loss_scale=LossScale()).

    Where a gradient is not finite, the update is left out and the scale halved; after `patience`
    updates in a row it is doubled. A step that was left out counts for the schedules and for Adam's
    t. All of it stays where the arrays are: no step waits for a number; for that, `step` holds a
    copy of all that is trained, and of its moments.
    """

    def __init__(self, scale: float = 2.0**16, patience: int = 1000) -> None:
        if not (scale > 0 and np.isfinite(scale)) or patience < 1:
            raise ValueError(
                f"LossScale: scale {scale} must be positive and finite, patience {patience} at "
                "least 1"
            )
        self.start, self.patience = scale, patience
        self.scale: Array = asarray(np.array(scale, "float32"))  # ()
        self.good: Array = asarray(np.array(0))  # updates since the scale last changed
        self.finite: Array = xp.ones((), bool)  # were all gradients of this step?

    def backward(self, loss: Tensor) -> None:
        """Add the scaled gradients of the loss to the leaves' `.grad`."""
        scaled = loss * self.scale
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # the host would warn of what is met
                scaled.backward()
            self.finite = self.finite & xp.isfinite(scaled.data)  # a device made it nan, if not
        except FloatingPointError:  # on the host
            self.finite = xp.zeros((), bool)

    def unscale(self, optimizer: Optimizer) -> None:
        """Take the scale out of the gradients: before they are clipped."""
        inverse = 1 / self.scale
        for p in optimizer.parameters.values():
            if p.grad is not None:
                p.grad = p.grad * inverse  # in float32: a half would lose it again

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`, unless a gradient was not finite; then the next scale."""
        held = [p.data for p in optimizer.parameters.values()] + [*optimizer.arrays().values()]
        before = [array.copy() for array in held]
        optimizer.step()
        for array, old in zip(held, before):
            xp.copyto(array, old, where=~self.finite)
        self.good = xp.where(self.finite, self.good + 1, 0)
        grown = xp.minimum(self.scale * 2, xp.maximum(self.scale, MOST))
        grown = xp.where(self.good >= self.patience, grown, self.scale)
        self.scale = xp.where(self.finite, grown, self.scale * 0.5)
        self.good = self.good % self.patience
        self.finite = xp.ones((), bool)

    def state_dict(self) -> dict[str, float]:
        """The scale and how many updates it has held, on the host."""
        return {"scale": float(asnumpy(self.scale)), "good": int(asnumpy(self.good))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.scale = asarray(np.array(state["scale"], "float32"))
        self.good = asarray(np.array(int(state["good"])))
