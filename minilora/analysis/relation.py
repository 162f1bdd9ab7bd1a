"""How an update ΔW relates to the W that it changes: what it amplifies, what it plants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import integer, real
from ..words import our_words
from .decomposition import decompose, dense, matrix, norm


@dataclass(frozen=True)
class Amplification:
    """The numbers of table 7, for one W, one ΔW and r directions.

    update     ‖ΔW‖_F
    in_update  ‖Uᵀ W V‖_F, where U and V are the top r singular vectors of ΔW
    in_own     the same of W itself: √(σ_1² + ... + σ_r²), the most that is possible
    in_random  the same of a random matrix: the root of the mean square, ‖W‖_F · r / √(d k)
    """

    r: int
    update: float
    in_update: float
    in_own: float
    in_random: float

    @property
    def factor(self) -> float:
        """The amplification factor ‖ΔW‖_F / ‖Uᵀ W V‖_F (§7.3); inf if W has nothing there."""
        return self.update / self.in_update if self.in_update else math.inf

    @property
    def random_factor(self) -> float:
        """The factor of an update with the same norm and random directions."""
        return self.update / self.in_random


@our_words
def amplification(W: Any, dW: Any, r: int) -> Amplification:
    """Return how much ΔW amplifies the directions of W that it uses: ‖ΔW‖_F / ‖Uᵀ W V‖_F (§7.3).

    W: (d, k), the weight before.   dW: as in `spectrum`.   U (d, r), V (k, r): the top r left and
    right singular vectors of ΔW. The result's `factor` is large if W has little in ΔW's directions;
    compare it with `random_factor`, which is as large if ΔW has any directions at all. It falls as
    r grows. Raises TypeError and ValueError as `spectrum`; ValueError for another shape of W, a W
    of zeros, and an r beyond the rank of ΔW.
    """
    W = matrix("amplification", "W", W, "a matrix")
    parts = decompose("amplification", "dW", dW)
    _fits("amplification", W, (len(parts.U), parts.Vt.shape[1]))
    r = integer("amplification", "r (at most the rank of dW)", r, 1, parts.rank)
    own = np.linalg.svd(W, compute_uv=False)[:r]
    inside = parts.U[:, :r].T @ W @ parts.Vt[:r].T
    chance = norm(W) * r / math.sqrt(W.size)
    return Amplification(r, norm(parts.s), norm(inside), norm(own), chance)


@dataclass(frozen=True)
class Intruders:
    """The new directions among the top singular vectors of W + ΔW.

    cosines  of each of the top k, the largest |cosine| with a singular vector of W
    which    the indexes, from 0, of those whose cosine is less than eps
    """

    cosines: tuple[float, ...]
    which: tuple[int, ...]
    eps: float

    @property
    def count(self) -> int:
        return len(self.which)


@our_words
def intruders(W: Any, dW: Any, k: int = 10, eps: float = 0.5) -> Intruders:
    """Return which of the top k left singular vectors of W + ΔW are like none of W's.

    A vector u is an intruder if |cos(u, u_i)| < eps for every left singular vector u_i of W with
    σ_i > 0 (Shuttleworth et al. 2024, arXiv 2410.21228, algorithm 1).

    W: (d, n), the weight before.   dW: as in `spectrum`.   k: at most the rank of W + ΔW.   eps: in
    (0, 1]. A random direction has a largest |cosine| of about √(2 ln d / d), so eps must be above
    that. Where singular values of W are close together, even a small ΔW turns their vectors. So
    compare with the control: `intruders(W, random_like(dW, rng), k, eps)`. Raises TypeError and
    ValueError as `amplification`.
    """
    eps = real("intruders", "eps", eps, "(0, 1]")
    W, dW = matrix("intruders", "W", W, "a matrix"), dense("intruders", "dW", dW)
    _fits("intruders", W, dW.shape)
    before, after = decompose("intruders", "W", W), decompose("intruders", "W + dW", W + dW)
    k = integer("intruders", "k (at most the rank of W + dW)", k, 1, after.rank)
    cosines = abs(before.U[:, : before.rank].T @ after.U[:, :k]).max(axis=0)
    which = np.flatnonzero(cosines < eps)
    return Intruders(tuple(np.minimum(cosines, 1.0).tolist()), tuple(which.tolist()), eps)


def _fits(who: str, W: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError if ΔW of this shape is no update of W, or W is 0."""
    if W.shape != shape:
        raise ValueError(f"{who}: W is {W.shape}, dW is {shape}: give an update of this W; that of "
                         "an Embedding is (B A)ᵀ, which has the factors (A.T, B.T)")
    if not W.any():
        raise ValueError(f"{who}: W is 0, so it has no directions: give the weight before training")
