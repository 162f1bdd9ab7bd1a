"""A merge that the test of exercise 09 calls. It runs in the judge's process."""

from __future__ import annotations

from typing import Any

import numpy as np

from minilora.exercises import kit


class Merge:
    """A merge with this body. It records the first call that does not fit, and the last one."""

    def __init__(self, body: str) -> None:
        text = "def merge(W, A, B, alpha):\n    r = A.shape[0]\n    " + body.replace("; ", "\n    ")
        space: dict[str, Any] = {"memory": {}}
        exec(text, space)
        self._body = space["merge"]
        self.calls, self.misfit = 0, ""
        self._cases: list[dict[str, bool]] = []
        self._given: Any = None  # the arguments of the last call, before it
        self._result: Any = None

    def __call__(self, W: Any, A: Any, B: Any, alpha: Any) -> Any:
        self.calls += 1
        if misfit := _misfit(W, A, B, alpha):
            self.misfit = self.misfit or misfit
            raise ValueError(misfit)
        (d, k), r = W.shape, len(A)
        self._cases.append({
            "d = k": d == k, "r = 1": r == 1, "alpha = r": bool(alpha == r), "W = 0": not W.any(),
            "alpha a multiple of r": bool(alpha % r == 0), "B = 0": not B.any(),
        })
        self._given, self._result = (W.copy(), A.copy(), B.copy(), alpha), None
        with np.errstate(all="ignore"):
            self._result = self._body(W, A, B, alpha)
        return self._result

    def common(self) -> dict[str, Any]:
        """Return what is true in all calls; and whether there were none, one or more."""
        names = self._cases[0] if self._cases else {}
        true = {name: all(case[name] for case in self._cases) for name in names}
        return {**true, "calls": min(len(self._cases), 2)}

    def last(self) -> list[str]:
        """Return lines about the last call."""
        if not isinstance(self._result, np.ndarray):
            return []
        W, A, B, alpha = self._given
        exact = W + alpha / len(A) * (B @ A)
        gap, most = abs(self._result - exact).max(), abs(exact).max()
        return [f"after a call with W {W.shape}, A {A.shape}, B {B.shape}, alpha = {alpha:.6g}",
                f"its result differs from W + alpha / r * (B @ A) by up to {gap:.1e}, and the "
                f"largest number is {most:.1e}"]


def _misfit(W: Any, A: Any, B: Any, alpha: Any) -> str:
    """What is wrong with the arguments of a call."""
    w, a, b = (getattr(array, "shape", kit.kind(array)) for array in (W, A, B))
    fits = all(isinstance(array, np.ndarray) and array.ndim == 2 and array.size
               for array in (W, A, B))
    if not (fits and (*w, a[0]) == (b[0], a[1], b[1])):
        return f"your test calls merge with W {w}, A {a}, B {b}: it takes W (d, k), A (r, k), " \
               "B (d, r)"
    if not isinstance(alpha, int | float | np.number | np.ndarray) or np.ndim(alpha):
        return f"your test calls merge with alpha = {kit.shown(alpha)}: it takes a number"
    return ""
