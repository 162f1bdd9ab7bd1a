"""What all array libraries have in common whose arrays are not on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .host import total
from .library import Array, Backend, Task


class Device(Backend):
    """An array library whose arrays are not on the host: calls return before they are done, and a
    copy to the host happens only when it is asked for. It needs asnumpy, synchronize, reserved,
    scatter_add and erf of its own.
    """

    on_host = False
    piece, queries = 1 << 26, 1 << 10  # large, because every call costs a launch

    def describe(self) -> str:
        return f"{self.name} {self.module.__version__}"

    def share(self, task: Task, n: int, size: int, piece: int = 0) -> None:
        """Run all of it as one task: the device shares the work by itself."""
        if n:
            task(slice(0, n))

    def peek(self, x: Any, otherwise: float) -> float:
        return otherwise

    def finite(self, loss: Array, gradients: Sequence[Array]) -> Array:
        """Return loss + 0 · Σ of all gradients: nan if any number is not finite."""
        if not gradients:
            return loss
        return loss + (sum(map(total, gradients)) * 0).astype(loss.dtype)

    def _missing(self, *_: Any) -> Any:
        raise NotImplementedError(
            f"{self.name}: its Backend needs asnumpy, synchronize, reserved, scatter_add and erf "
            "of its own: NumPy's do not fit a device")

    asnumpy = synchronize = reserved = scatter_add = erf = _missing  # type: ignore[assignment]
