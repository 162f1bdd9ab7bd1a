"""Is a merge right? Three checks, of which each sees what the others cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..adapters import merged
from ..backend import asnumpy
from ..nn import Module
from ..tensor import no_grad
from .bounds import Comparison, compare
from .roundings import twin
from .weights import Weight, weigh

APART = 1e-12  # in float64, as a share of the largest logit: rounding makes some 1e-15


@dataclass(frozen=True)
class Verification:
    """What `verify` found: str() explains it in a few lines, `as_dict` is for JSON."""

    weights: dict[str, Weight]  # each merged W, by name
    changed: tuple[str, ...]  # parameters that are not merged, and not what they were
    apart: float  # merged to unmerged in float64: the largest difference over the largest logit
    logits: Comparison  # in the model's own dtype

    @property
    def checks(self) -> dict[str, bool]:
        """Each check by its name, and whether the merge passed."""
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
        """Plain values by name."""
        return {"passed": self.passed, "checks": self.checks, **asdict(self)}

    def __str__(self) -> str:
        one, rows = self.logits, [("merged against unmerged", "error", "allowed", "")]
        if self.weights:
            name, w = max(self.weights.items(), key=lambda item: item[1].off / item[1].allowed)
            why = "units in the last place: W is rounded once"
            rows.append(("each number of each W", f"{w.off:.5g}", f"{w.allowed:.5g}", why))
            rows.append(("", "", "", f"(largest error: {name}[{w.entry[0]}, {w.entry[1]}])"))
        rows += [
            ("logits, computed in float64", f"{self.apart:.1e}", f"{APART:.1e}",
             "relative to the largest logit"),
            (f"logits, computed in {one.dtype}", f"{one.difference:.1e}", f"{one.probable:.1e}",
             "rounding exceeds this once in a million cases"),
            ("", "", f"{one.bound:.1e}", "worst case: all rounding errors have one sign"),
        ]
        failed = [name for name, passed in self.checks.items() if not passed]
        told = f"the merge is WRONG: {', '.join([*failed, *self.changed])}"
        lines = [f"{a:<30}{b:>10}{c:>10}  {d}".rstrip() for a, b, c, d in rows]
        return "\n".join([*lines, told if failed else "the merge is right"])


def verify(model: Module, ids: Any) -> Verification:
    """Hold the merge of the active adapters against what it should be. The model stays as it is.

    weights: every entry of every merged W against W0 + Σ (alpha / r) · B A, made anew with twice
    the digits of float64. Allowed is half a unit in the last place, because W is rounded, once, and
    what a merge may lose where it adds up in float64: some 1e-8 units in a float32 model. In a
    float64 one, for which nothing wider adds up, it is about r units where ΔW is as large as W.
    PiSSA's W is W0 + s (B A - B0 A0), DoRA's m / |V| · V, and |V| takes some k units more there.
    unchanged: all other parameters are what they were, bit for bit.
    float64: the logits for ids (batch, tokens), merged and unmerged, of the model in float64 differ
    by less than 1e-12 of the largest. That sees what the weights are used for, such as an adapter
    that is merged and not used. (Where rounding alone makes more of it, float32 would have but
    three digits right.)
    rounding: the logits in the model's own dtype differ by no more than rounding makes of them but
    once in a million times (see `compare`).

    Raises ValueError for a model without adapters, FloatingPointError for one that is not finite.
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
