"""What a run measures in its update: norms, ranks, and how ΔW relates to W (§7)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import analysis
from ..adapters.protocol import Adapted
from ..backend import asnumpy

READ = ("q", "v")  # the matrices that the paper analyses
ENERGY = 0.9
TOPS = (1, 4, 8, 64)  # numbers of singular vectors of ΔW for table 7


def delta(model: Any, base: Any, block: int, name: str) -> np.ndarray | None:
    """Return ΔW of a block's matrix in float64; None if it is not adapted as a matrix."""
    module, own = getattr(model.blocks[block].attn, name), getattr(base.blocks[block].attn, name)
    if isinstance(module, Adapted):
        if any(module.adapters[at].factors() is None for at in module.active):
            return None
        return np.asarray(asnumpy(module.delta()))
    W0, W = (asnumpy(x.W.data).astype(np.float64) for x in (own, module))
    return W - W0 if (W != W0).any() else None


def read_updates(model: Any, base: Any) -> dict[str, Any]:
    """Return {"q": {...}, "v": {...}} of the last block, for those that are adapted.

    norm, of W too; rank that keeps ENERGY of the squares; the first singular values; inside:
    ‖Uᵀ W V‖_F for the top 1, 4, 8 and 64 singular vectors of ΔW, up to its rank (§7.3).
    """
    last, result = len(base.blocks) - 1, {}
    for name in READ:
        dW = delta(model, base, last, name)
        if dW is None or not dW.any():
            continue
        W0 = asnumpy(getattr(base.blocks[last].attn, name).W.data).astype(np.float64)
        result[name] = {
            "norm": float(np.linalg.norm(dW)), "base_norm": float(np.linalg.norm(W0)),
            "rank": analysis.rank_for(dW, ENERGY),
            "spectrum": [float(s) for s in analysis.spectrum(dW)[:8]],
            "inside": {str(r): analysis.amplification(W0, dW, r).in_update
                       for r in TOPS if r <= analysis.rank_for(dW, 1.0)},
        }
    return result
