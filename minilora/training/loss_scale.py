"""Loss scaling, so that gradients in half precision do not vanish (Micikevicius et al. 2018, §3.2).

A half ends at 6e-8, and most gradients of a fine-tuned model are smaller. The loss times a power of
two makes every gradient larger by that factor, without rounding; where a gradient arrives, in
float32, the factor is taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import Array, asarray, asnumpy, current, xp
from ..checks import real, whole
from ..tensor import Tensor
from ..words import our_words
from .optim import Optimizer

SCALES = "[1e-38, 3e38]"  # that are numbers in float32
LEAST, MOST = 2.0**-10, 2.0**24  # below, no gradient is left to save; it grows no further


class LossScale:
    """The scale, and what becomes of it: fit(..., loss_scale=LossScale()).

    Where a gradient is not finite, the update is left out and the scale halved; after `patience`
    updates in a row it is doubled. A step that was left out counts for the schedules and for Adam's
    t. All of it stays where the arrays are: no step waits for a number; for that, `step` holds a
    copy of all that is trained, and of its moments.
    """

    @our_words
    def __init__(self, scale: float = 2.0**16, patience: int = 1000) -> None:
        self.start = real("LossScale", "scale", scale, SCALES)
        self.patience = whole("LossScale", "patience", patience, 1)
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
        if current().peek(self.finite, True):
            held = [p.data for p in optimizer.parameters.values()] + [*optimizer.arrays().values()]
            before = [array.copy() for array in held]
            optimizer.step()
            for array, old in zip(held, before):
                xp.copyto(array, old, where=~self.finite)
        else:  # on the host it is known that nothing is to be done
            optimizer.t += 1
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
        """Go on from a `state_dict`; ValueError for what is none."""
        scale = real("LossScale", "scale", state.get("scale"), SCALES)
        good = whole("LossScale", "good", state.get("good"))
        self.scale, self.good = asarray(np.array(scale, "float32")), asarray(np.array(good))
