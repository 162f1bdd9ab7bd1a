"""Loss scaling: gradients in half precision do not vanish (Micikevicius et al. 2018, §3.2).

The smallest float16 is 6e-8, and most gradients in fine-tuning are smaller. A loss multiplied by a
power of two gives gradients larger by that factor, without rounding. The float32 gradients of the
parameters are then divided by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import Array, asarray, asnumpy, current, xp
from ..backend.flags import own_flags, quietly
from ..backend.writes import wrote
from ..checks import integer, real
from ..tensor import Tensor
from ..words import our_words
from .optim import Optimizer

SCALES = "[1e-38, 3e38]"  # normal numbers of float32
LEAST, MOST = 2.0**-10, 2.0**24  # below LEAST training has failed; no growth above MOST


class LossScale:
    """A scale that adapts itself: fit(..., loss_scale=LossScale()).

    If a gradient is not finite, the update is skipped and the scale halved. After `patience`
    updates in a row the scale is doubled. A skipped step counts for schedules and for Adam's t. The
    scale stays on the device, so no step waits for a number; for that, `step` copies the trained
    parameters and their moments.
    """

    @our_words
    def __init__(self, scale: float = 2.0**16, patience: int = 1000) -> None:
        self.start = real("LossScale", "scale", scale, f"[{LEAST}, 3e38]")
        self.patience = integer("LossScale", "patience", patience, 1)
        self.scale: Array = asarray(np.array(scale, "float32"))  # ()
        self.good: Array = asarray(np.array(0))  # updates since the scale last changed
        self.finite: Array = xp.ones((), dtype=bool)  # are all gradients of this step finite?

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of the scaled loss to the leaves' `.grad`."""
        def scaled() -> Tensor:
            result: Tensor = loss * asarray(self.scale)  # a number would be rounded to a half
            result.backward()
            return result

        try:
            value = quietly(scaled)  # an overflow is expected
            self.finite = self.finite & xp.isfinite(value.data)  # a device makes it nan
        except FloatingPointError:  # on the host
            self.finite = xp.zeros((), dtype=bool)

    @own_flags
    def unscale(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, before they are clipped."""
        inverse = 1 / self.scale
        for p in optimizer.parameters.values():
            if p.grad is not None:
                p.grad = p.grad * inverse  # float32: in a half it would vanish again

    @own_flags
    def step(self, optimizer: Optimizer) -> None:
        """Call `optimizer.step()` unless a gradient is not finite, then adapt the scale."""
        if current().peek(self.finite, True):
            arrays = [p.data for p in optimizer.parameters.values()]
            arrays += [*optimizer.arrays().values()]
            before = [array.copy() for array in arrays]
            optimizer.step()
            for array, old in zip(arrays, before):
                xp.copyto(array, old, where=~self.finite)
                wrote(array)
        else:  # the host knows that the step is skipped
            optimizer.t += 1
        good = xp.where(self.finite, self.good + 1, 0)
        grown = xp.maximum(self.scale, xp.minimum(self.scale, MOST / 2) * 2)
        grown = xp.where(good >= self.patience, grown, self.scale)
        scale = xp.where(self.finite, grown, self.scale * 0.5)
        good, finite = good % self.patience, xp.ones((), dtype=bool)
        self.scale, self.good, self.finite = scale, good, finite  # no interrupt comes between

    def begin(self) -> None:
        """Forget the gradients of a step that was interrupted, as `zero_grad` does."""
        self.finite = xp.ones((), dtype=bool)

    def state_dict(self) -> dict[str, float]:
        """Return the scale and the number of updates since it changed, on the host."""
        return {"scale": float(asnumpy(self.scale)), "good": int(asnumpy(self.good))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`; ValueError for an invalid one."""
        scale = real("LossScale", "scale", state.get("scale"), SCALES)
        good = integer("LossScale", "good", state.get("good"))
        self.scale, self.good = asarray(np.array(scale, "float32")), asarray(np.array(good))
