"""Do two updates use the same directions? The paper's similarity of subspaces (§7.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import integer
from ..words import our_words
from .decomposition import SVD, decompose


@our_words
def subspace_similarity(A1: Any, A2: Any, i: int, j: int) -> float:
    """φ(A1, A2, i, j) = ‖V1ᵢᵀ V2ⱼ‖²_F / min(i, j), in [0, 1] (§7.2, equation 4).

    V1ᵢ: (k, i), the first i right singular vectors of A1; V2ⱼ: (k, j), the first j of A2. It is 1
    if one space holds the other, 0 if they are orthogonal, about max(i, j) / k by chance (see
    `random_similarity`), and the same for Q A1 with an orthogonal Q.

    A1, A2: matrices (r1, k) and (r2, k), such as LoRA's A, or a whole update as in `spectrum`: its
    directions are weighted by B, too, and do not keep the random start of A. For left singular
    vectors give the transposes. Appendix G prints φ = (1 − d²) / p with p = min(i, j) and
    d² = p − Σ σ²; with that d, it must read 1 − d² / p.

    Raises TypeError and ValueError as `spectrum`, and ValueError for i or j beyond the rank: those
    directions would be arbitrary. They are also where singular values are equal.
    """
    V1, V2 = _pair("subspace_similarity", A1, A2)
    i = integer("subspace_similarity", "i", i, 1, V1.rank)
    j = integer("subspace_similarity", "j", j, 1, V2.rank)
    return float(_grid(V1.Vt[:i], V2.Vt[:j])[-1, -1])


@our_words
def subspace_grid(A1: Any, A2: Any, n: int | None = None, m: int | None = None) -> np.ndarray:
    """Return φ(A1, A2, i, j) at [i - 1, j - 1] for i = 1..n and j = 1..m, (n, m): figure 3.

    It takes one SVD of each. None: the rank of A1, or of A2. See `subspace_similarity`.
    """
    V1, V2 = _pair("subspace_grid", A1, A2)
    n = integer("subspace_grid", "n", V1.rank if n is None else n, 1, V1.rank)
    m = integer("subspace_grid", "m", V2.rank if m is None else m, 1, V2.rank)
    return _grid(V1.Vt[:n], V2.Vt[:m])


@our_words
def random_similarity(d: int, i: int, j: int) -> float:
    """E φ = max(i, j) / d for random subspaces with i and j dimensions of d (§7.2's control).

    One φ is off by a standard deviation of √(2 i j (d - i) (d - j) / (d² (d - 1) (d + 2))) /
    min(i, j). i, j: integers from 1 to d.
    """
    d = integer("random_similarity", "d", d, 1)
    i, j = (integer("random_similarity", name, n, 1, d) for name, n in (("i", i), ("j", j)))
    return max(i, j) / d


def _pair(who: str, A1: Any, A2: Any) -> tuple[SVD, SVD]:
    """Return the SVD of both. Raises ValueError for unequal numbers of columns, and for zeros."""
    first, second = decompose(who, "A1", A1), decompose(who, "A2", A2)
    k1, k2 = first.Vt.shape[1], second.Vt.shape[1]
    if k1 != k2:
        raise ValueError(f"{who}: A1 has {k1} columns, A2 has {k2}: their rows must be directions "
                         "of one space; for left singular vectors give the transposes")
    for name, parts in (("A1", first), ("A2", second)):
        if not parts.rank:
            raise ValueError(f"{who}: {name} is 0, so it has no directions: train it first")
    return first, second


def _grid(V1: np.ndarray, V2: np.ndarray) -> np.ndarray:
    """Return φ of the first 1, 2, ... rows of V1 (n, k) and of V2 (m, k), (n, m)."""
    sums = np.cumsum(np.cumsum((V1 @ V2.T) ** 2, axis=0), axis=1)
    i, j = np.arange(1, len(V1) + 1), np.arange(1, len(V2) + 1)
    return np.minimum(sums / np.minimum(i[:, None], j), 1.0)  # rounding could give more than 1
