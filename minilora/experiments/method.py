"""What holds of the method itself: the start, what is trained, the merge. Measured on a base."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import data, lora
from ..adapters.places import walk
from ..backend import asnumpy
from ..models.pretrained import load_base
from ..nn import evaluating
from ..rounding.verification import APART, verify
from ..tensor import no_grad
from ..training.fit import fit
from ..training.optim import AdamW


def measure(base: str = "shakespeare", steps: int = 8) -> dict[str, Any]:
    """Return numbers of a base that is adapted for a few steps.

    start     the number of logits that differ before the first step
    trained   the names of the trained parameters, by their last letter
    changed   the number of the base's parameters that changed, of `parameters`
    moved     the norm of all ΔW after the steps
    apart     the largest difference of the merged and the unmerged model's logits in float64,
              divided by the largest logit; allowed: the limit of `verify`
    checks    how many checks of the merge pass, of `of`
    """
    model = load_base(base)
    tokens = model.tokenizer.encode(data.load_text("kjv")[:4000])
    windows = data.Windows(tokens, 4, 32, seed=0)
    before = {name: asnumpy(p.data).copy() for name, p in model.named_parameters()}
    ids, _ = windows[0]
    with no_grad(), evaluating(model):
        logits = asnumpy(model(ids).data)
        lora.attach(model, lora.LoRAConfig(r=4, alpha=4.0, targets=("q", "v")), rng=0)
        start = int((asnumpy(model(ids).data) != logits).sum())
    trained = sorted({name.rpartition(".")[2] for name in model.trainable_parameters()})
    optimizer = AdamW(model.trainable_parameters(), lr=1e-2)
    fit(model, windows, optimizer, steps, progress=False)
    merge = verify(model.eval(), ids)
    deltas = [asnumpy(part.delta()) for _, part in walk(model) if isinstance(part, lora.Adapted)]
    lora.detach(model)
    return {
        "start": start, "trained": trained, "steps": steps, "parameters": len(before),
        "total": sum(array.size for array in before.values()),
        "changed": sum(not np.array_equal(asnumpy(p.data), before[name])
                       for name, p in model.named_parameters()),
        "moved": float(np.sqrt(sum(np.square(delta).sum() for delta in deltas))),
        "apart": merge.apart, "allowed": APART,
        "checks": sum(merge.checks.values()), "of": len(merge.checks),
    }
