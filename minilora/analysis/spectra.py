"""How many directions an update has, and a random matrix to compare it with."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Rng, generator
from ..checks import choice, real
from ..words import our_words
from .decomposition import decompose, dense, norm

TIE = 1e-12  # relative; two shares of energy that differ by less are equal


@our_words
def spectrum(dW: Any) -> np.ndarray:
    """Return the singular values σ_1 ≥ σ_2 ≥ ... of ΔW, float64.

    dW: a matrix (d, k), array or Tensor, which has min(d, k) values; or its factors (B, A) or
    (scale, B, A), B (d, r), A (r, k), which have at most r: the others are 0. If r is smaller than
    d and k, the product is never computed. Raises TypeError for other objects, ValueError for
    shapes that do not fit and numbers that are not finite.
    """
    return decompose("spectrum", "dW", dW).s


@our_words
def rank_for(dW: Any, energy: float = 0.9) -> int:
    """Return the smallest n with σ_1² + ... + σ_n² ≥ energy · Σ σ_i²; 0 for a matrix of zeros.

    dW: as in `spectrum`. energy: a share in (0, 1]; 1 gives the rank. By chance, a square Gaussian
    matrix needs about half of its directions for a share of 0.9, not 0.9 of them, because the
    largest come first: compare with `random_like(dW, keep="norm")`.
    """
    energy = real("rank_for", "energy", energy, "(0, 1]")
    parts = decompose("rank_for", "dW", dW)
    squares = (parts.s[: parts.rank] / parts.s[0]) ** 2  # none for a matrix of zeros
    left_out = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # by the first 0, 1, 2, ...
    return int((left_out <= (1 - energy) * left_out[0] * (1 + TIE)).argmax())


@our_words
def random_like(dW: Any, rng: Rng = None, keep: str = "spectrum") -> np.ndarray:
    """Return a random matrix of ΔW's shape, float64 (d, k): the control for a measured number.

    dW: as in `spectrum`. keep="spectrum": ΔW's singular values, and so its rank and norm, with
    random directions (uniform over all orthogonal ones): the control for similarity, amplification
    and intruders. keep="norm": Gaussian entries, scaled to ΔW's Frobenius norm: the control for the
    rank.
    """
    choice("random_like", "keep", keep, ("spectrum", "norm"))
    rng = generator(rng)
    if keep == "norm":
        size = dense("random_like", "dW", dW)
        noise = rng.standard_normal(size.shape)
        return np.asarray(noise * (norm(size) / norm(noise)))
    U, s, Vt = decompose("random_like", "dW", dW)
    return np.asarray(_directions(rng, U.shape) * s @ _directions(rng, Vt.T.shape).T)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return orthonormal columns, uniform over all: Q of a Gaussian matrix, with R's signs."""
    Q, R = np.linalg.qr(rng.standard_normal(shape))
    return np.asarray(Q * np.sign(np.diag(R)))
