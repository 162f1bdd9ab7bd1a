"""How far rounding alone can part a merged model from the unmerged one.

The two compute the same numbers in another order. An operation on floats gives the exact result
times 1 + δ, |δ| <= u, u half the spacing of floats at 1; and a product that is too small for that
is off by at most half the smallest float η. What stays under a bound made of this may be rounding;
what does not is a mistake, such as alpha for alpha / r.

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
from ..nn import Linear, Module
from ..tensor import no_grad
from .roundings import Moved, least, roundings_as_it_is, roundings_merged, twin, unit

ODDS = 1e-6  # how likely it is that one of the probable bounds of all logits is too low


def gamma(terms: int, dtype: Any) -> float:
    """γ(n) = n u / (1 - n u), the relative error of n roundings in a row in this dtype.

    Infinite from n u = 1 on: then nothing is known.
    """
    t = terms * unit(dtype)
    return t / (1 - t) if t < 1 else math.inf


def layer_bound(layer: Linear | Adapted, x: Array) -> Array:
    """The bound on |merged(x) - unmerged(x)|, entry by entry, at every scale of x, W, A and B.

    x: (..., k)   out: (..., d), float64. Each side adds up at most k + r + 3 terms per output; the
    merged weight itself is rounded once.

    What is lost below the smallest floats, η / 2 at a time, is counted as η, to leave room for
    later roundings. It is lost in k products of W0 x and k of W x; in r of B (A x), and one with
    s = alpha / r; in k of each entry of A x, which reach the output through |s B|; in an entry of
    the merged W, which meets x. In half precision A, B and s are themselves rounded to it: A meets
    x, B and s meet A x. In float64 the products that W is made of may be too small as well.
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
                f"layer_bound: it is for one B A, not for {type(adapter).__name__}: lora.verify "
                "has bounds for it"
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
    """The largest difference between merged and unmerged logits, and the bounds for that logit."""

    difference: float
    bound: float  # what rounding can do in the worst case
    probable: float  # what it does, but for one time in 1 / ODDS
    logit: tuple[int, ...]  # (sequence, token, vocabulary)
    dtype: str  # in which they were computed


def compare(model: Module, ids: Any) -> Comparison:
    """Run the model on ids (batch, tokens) as it is and merged, and compare the logits.

    Every operation of both runs is counted, of all ops of minilora. To first order a rounding δ
    moves the logit by c δ: c is the size of what is rounded times the logit's gradient there, both
    from a run in float64. So the roundings together move it by u Σ|c| at most. If they do not
    depend on one another and are 0 on average, they move it by less than λ u √Σc², but for a
    probability of 2 e^(-λ²/2) (Hoeffding): λ is such that this is ODDS for all logits together.
    What is lost below the smallest floats is added to both at its worst. The probable bound is some
    40 times what is seen; more where rows are long, or halves are added up in float32.

    The model stays as it is. Raises ValueError for no ids, FloatingPointError where a logit is not
    finite.
    """
    same, ids = twin(model), np.asarray(ids)
    if not ids.size:
        raise ValueError(f"compare: ids are {ids.shape}: give it a sequence of one token at least")
    with no_grad():
        before = asnumpy(same(ids).data)
        with merged(same):
            after = asnumpy(same(ids).data)
    apart = np.abs(after.astype(np.float64) - before)
    if not np.isfinite(apart).all():
        raise FloatingPointError(
            "compare: a logit of the model, merged or not, is not finite in "
            f"{before.dtype}: look at the weights, or load the model in a wider dtype"
        )
    at = tuple(int(i) for i in np.unravel_index(int(apart.argmax()), apart.shape))
    one, moved = ids[at[0] : at[0] + 1], Moved(before.dtype)  # no sequence changes another
    roundings_as_it_is(twin(model, "float64"), one, (0, *at[1:]), moved)
    roundings_merged(twin(model, "float64"), one, (0, *at[1:]), moved)
    spread = math.sqrt(2 * math.log(2 * apart.size / ODDS) * moved.squares)
    u, lost = unit(before.dtype), least(before.dtype) * moved.lost
    most = u * moved.sum + lost
    return Comparison(float(apart[at]), most, min(u * spread + lost, most), at, str(before.dtype))
