"""Bounds on the difference that rounding alone makes between a merged and an unmerged model.

Both compute the same numbers in a different order. An operation on floats returns the exact result
times 1 + δ, |δ| <= u, where u is half the spacing of floats at 1. A product that underflows has an
error of at most half the smallest float η. A difference below the bound may be rounding; one above
it is a mistake, such as alpha for alpha / r.

Higham, Accuracy and Stability of Numerical Algorithms, §2.2 and §3.1; Higham and Mary, A new
approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41(5), 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import Adapted, merged
from ..adapters.places import bare
from ..backend import Array, asnumpy
from ..backend.flags import own_flags
from ..nn import Linear, Module
from ..tensor import no_grad
from .roundings import Moved, least, roundings_as_it_is, roundings_merged, twin, unit

ODDS = 1e-6  # the probability that any logit exceeds its probable bound


def gamma(terms: int, dtype: Any) -> float:
    """Return γ(n) = n u / (1 - n u), the bound on the relative error of n roundings in a row.

    Infinite if n u >= 1, where no bound is known.
    """
    t = terms * unit(dtype)
    return t / (1 - t) if t < 1 else math.inf


def layer_bound(layer: Linear | Adapted, x: Array) -> Array:
    """Return the bound on |merged(x) - unmerged(x)|, entry by entry, for any scale of x, W, A, B.

    x: (..., k)   out: (..., d), float64. Each side sums at most k + r + 3 terms per output; the
    merged weight is rounded once. Raises ValueError for adapters other than one B A.

    Each underflow loses η / 2, and counts as η to leave room for later roundings. The places are:
    k products of W0 x and k of W x; r products of B (A x), and one with s = alpha / r; k products
    in each entry of A x, times |s B|; each entry of the merged W, times x. In half precision A, B
    and s are rounded too: A is multiplied by x, B and s by A x. In float64 the products in W may
    underflow as well.
    """
    base: Any = bare(layer)
    adapters = [layer.adapters[n] for n in layer.active] if isinstance(layer, Adapted) else []
    x, k, dtype = abs(_wide(x)), base.W.shape[1], base.dtype  # W is widened to it exactly
    size, all_x = x @ abs(_wide(base.W.data)).T, x.sum(axis=-1, keepdims=True)
    lost, finer, terms = 2 * k + all_x, least("float64") / least(dtype), k + 1
    for adapter in adapters:
        factors = adapter.factors() or ()
        if len(factors) != 1 or adapter.row_scale() is not None:
            raise ValueError(
                f"layer_bound: {type(adapter).__name__} is not a single update B A: use "
                "lora.verify, which has bounds for it"
            )
        ((scale, B_, A_),) = factors
        r, s, B = B_.shape[1], abs(scale), abs(_wide(B_.data)).T
        narrow = x @ abs(_wide(A_.data)).T
        size += narrow @ B * s
        lost = lost + r * (1 + s) + 1 + (k + all_x) * (s * B.sum(axis=0))
        lost = lost + (1 + s) * narrow.sum(axis=-1, keepdims=True) + narrow @ B
        lost = lost + (r + 1) * (1 + s) * all_x * finer
        terms += r + 3
    if base.b is not None:
        size += abs(_wide(base.b.data))
    return size * (2 * gamma(terms, dtype) + gamma(1, dtype)) + lost * least(dtype)


def _wide(x: Any) -> Array:
    return x.astype("float64")


@dataclass(frozen=True)
class Comparison:
    """The largest difference between merged and unmerged logits, and its bounds."""

    difference: float
    bound: float  # by rounding, in the worst case
    probable: float  # by rounding, exceeded with probability ODDS
    logit: tuple[int, ...]  # (sequence, token, vocabulary)
    dtype: str  # of the logits


@own_flags
def compare(model: Module, ids: Any) -> Comparison:
    """Run the model on ids (batch, tokens), unmerged and merged, and compare the logits.

    Every operation of both runs counts, for all ops of minilora. To first order a rounding δ
    changes a logit by c δ: c is the size of the rounded number times the logit's gradient there,
    both from a run in float64. So all roundings change it by at most u Σ|c|. If they are
    independent with mean 0, the change exceeds λ u √Σc² with probability at most 2 e^(-λ²/2)
    (Hoeffding). λ is chosen so that this is ODDS for all logits together. The worst case of all
    underflows is added to both bounds. The probable bound is about 40 times the observed
    difference; more for long rows, or for halves that are summed in float32.

    The model is not changed. Raises ValueError for empty ids, FloatingPointError if a logit is not
    finite.
    """
    same, ids = twin(model), np.asarray(ids)
    if not ids.size:
        raise ValueError(f"compare: ids are {ids.shape}: give at least one token")
    with no_grad():
        before = asnumpy(same(ids).data)
        with merged(same):
            after = asnumpy(same(ids).data)
    apart = np.abs(after.astype(np.float64) - before)
    if not np.isfinite(apart).all():
        raise FloatingPointError(
            "compare: a logit of the model, merged or not, is not finite in "
            f"{before.dtype}: check the weights, or load the model in a wider dtype"
        )
    at = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
    one, moved = ids[at[0] : at[0] + 1], Moved(before.dtype)  # sequences are independent
    roundings_as_it_is(twin(model, "float64"), one, (0, *at[1:]), moved)
    roundings_merged(twin(model, "float64"), one, (0, *at[1:]), moved)
    spread = math.sqrt(2 * math.log(2 * apart.size / ODDS) * moved.squares)
    u, lost = unit(before.dtype), least(before.dtype) * moved.lost
    most = u * moved.sum + lost
    return Comparison(float(apart[at]), most, min(u * spread + lost, most), at, str(before.dtype))
