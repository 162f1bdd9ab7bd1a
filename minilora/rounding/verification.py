"""The proof of a merge: four checks, each for mistakes that the others miss."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..adapters import merged
from ..backend import asnumpy
from ..backend.flags import own_flags
from ..nn import Module
from ..tensor import no_grad
from .bounds import Comparison, compare
from .roundings import twin
from .weights import Weight, weigh

APART = 1e-12  # relative to the largest logit, in float64; rounding causes about 1e-15


@dataclass(frozen=True)
class Verification:
    """The result of `verify`: str() explains it in a few lines, `as_dict` is for JSON."""

    weights: dict[str, Weight]  # each merged W, by name
    changed: tuple[str, ...]  # parameters that changed although they are not merged
    apart: float  # largest difference of merged and unmerged logits over the largest, in float64
    logits: Comparison  # in the model's own dtype

    @property
    def checks(self) -> dict[str, bool]:
        """The checks by name: True if the merge passed."""
        return {
            "weights": all(weight.right for weight in self.weights.values()),
            "unchanged": not self.changed,
            "float64": self.apart < APART,
            "rounding": self.logits.difference <= self.logits.probable,
        }

    @property
    def passed(self) -> bool:
        return all(self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the result as numbers, strings, lists and dicts."""
        return {"passed": self.passed, "checks": self.checks, **asdict(self)}

    def __str__(self) -> str:
        one, rows = self.logits, [("merged against unmerged", "error", "allowed", "")]
        if self.weights:
            name, w = max(self.weights.items(), key=lambda item: item[1].off / item[1].allowed)
            why = "units in the last place"
            rows.append(("each number of each W", f"{w.off:.5g}", f"{w.allowed:.5g}", why))
            rows.append((f"  (largest error: {name}[{w.entry[0]}, {w.entry[1]}])", "", "", ""))
        rows += [
            ("logits, computed in float64", f"{self.apart:.1e}", f"{APART:.1e}",
             "of the largest logit"),
            (f"logits, computed in {one.dtype}", f"{one.difference:.1e}", f"{one.probable:.1e}",
             "exceeded once in a million"),
            ("", "", f"{one.bound:.1e}", "in the worst case"),
        ]
        failed = [name for name, passed in self.checks.items() if not passed]
        verdict = f"the merge is WRONG: {', '.join([*failed, *self.changed])}"
        lines = [f"{a:<30}{b:>10}{c:>10}  {d}".rstrip() for a, b, c, d in rows]
        return "\n".join([*lines, verdict if failed else "the merge is right"])


@own_flags
def verify(model: Module, ids: Any) -> Verification:
    """Check the merge of the active adapters. The model is not changed.

    weights: every entry of every merged W equals W0 + Σ (alpha / r) · B A, computed with twice the
    digits of float64. Allowed is half a unit in the last place, because W is rounded once, plus the
    rounding of the merge's own sum in float64: about 1e-8 units in a float32 model. In a float64
    model that sum is no wider than W, so it is about r units if ΔW is as large as W. PiSSA's W is
    W0 + s (B A - B0 A0). DoRA's W is m / |V| · V, and |V| adds about k units.
    unchanged: all other parameters are the same, bit for bit.
    float64: merged and unmerged logits for ids (batch, tokens), of the model in float64, differ by
    less than 1e-12 of the largest. This finds errors in how weights are used, such as an adapter
    that is merged but not active. (If rounding alone exceeded this, float32 would have only three
    correct digits.)
    rounding: the logits in the model's own dtype differ by no more than the bound on rounding that
    is exceeded once in a million (see `compare`).

    Raises ValueError for a model without adapters, FloatingPointError if a logit is not finite.
    """
    weights, changed = weigh(model)
    logits, wide = compare(model, ids), twin(model, "float64")
    with no_grad():
        before = asnumpy(wide(ids).data)
        with merged(wide):
            after = asnumpy(wide(ids).data)
    largest = max(np.abs(before).max(), np.finfo(np.float64).smallest_normal)
    apart = float(np.abs(after - before).max() / largest)
    return Verification(weights, changed, apart, logits)
