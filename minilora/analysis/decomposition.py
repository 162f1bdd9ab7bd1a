"""A matrix, or the factors B and A of one, is checked and decomposed: ΔW = U diag(s) Vᵀ."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..backend import asnumpy
from ..backend.flags import quietly
from ..checks import a, describe, real
from ..nn import Module

KINDS = "a matrix, or its factors (B, A) or (scale, B, A)"


class SVD(NamedTuple):
    """U diag(s) Vt, with the largest s first.

    U: (d, m)   s: (m,)   Vt: (m, k)   m: min(d, k), or the r of factors if it is smaller
    """

    U: np.ndarray
    s: np.ndarray
    Vt: np.ndarray

    @property
    def rank(self) -> int:
        """The number of s that are more than rounding errors: s > s_1 · max(d, k) · eps."""
        noise = self.s[0] * max(len(self.U), self.Vt.shape[1]) * np.finfo("float64").eps
        return int((self.s > noise).sum())


def decompose(who: str, name: str, dW: Any) -> SVD:
    """Return the SVD of a matrix, or of scale · B A without the product if r < min(d, k).

    B = Q R and Aᵀ = P S give B A = Q (R Sᵀ) Pᵀ, where R Sᵀ is only (r, r). Raises as `factors`.
    """
    scale, B, A = factors(who, name, dW)
    if B is None or B.shape[1] >= min(len(B), A.shape[1]):
        return SVD(*np.linalg.svd(product(who, name, scale, B, A), full_matrices=False))
    (Q, R), (P, S) = np.linalg.qr(B), np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(product(who, name, scale, R, S.T))
    return SVD(Q @ U, s, Vt @ P.T)


def dense(who: str, name: str, dW: Any) -> np.ndarray:
    """Return ΔW as one matrix, float64 (d, k). Raises as `factors`."""
    return product(who, name, *factors(who, name, dW))


def product(
    who: str, name: str, scale: float, B: np.ndarray | None, A: np.ndarray
) -> np.ndarray:
    """Return scale · B A, or A if there is no B. Raises ValueError if it overflows."""
    if B is None:
        return A
    result: np.ndarray = quietly(lambda: scale * (B @ A))
    if not np.isfinite(result).all():
        raise ValueError(f"{who}: {name}: the product of scale, B and A is too large for float64: "
                         "scale it down")
    return result


def factors(who: str, name: str, dW: Any) -> tuple[float, np.ndarray | None, np.ndarray]:
    """Return (scale, B, A) in float64; (1, None, ΔW) for a matrix.

    Raises TypeError for what is neither a matrix nor factors; ValueError for no or too many axes,
    no entries, factors that do not fit, and numbers that are not finite.
    """
    if not isinstance(dW, tuple):
        return 1.0, None, matrix(who, name, dW)
    if len(dW) not in (2, 3):
        raise TypeError(f"{who}: {name} must be {KINDS}, not a tuple of {len(dW)}")
    scale = real(who, f"the scale of {name}", dW[0]) if len(dW) == 3 else 1.0
    B, A = (matrix(who, f"{x} of {name}", dW[i], "a matrix") for i, x in ((-2, "B"), (-1, "A")))
    if B.shape[1] != len(A):
        raise ValueError(f"{who}: {name}: B is {B.shape}, A is {A.shape}: B has {B.shape[1]} "
                         f"columns, A has {len(A)} rows; give B (d, r) and A (r, k)")
    return scale, B, A


def matrix(who: str, name: str, x: Any, kinds: str = KINDS) -> np.ndarray:
    """Return x, an array or a Tensor with two axes, as float64 on the host. Raises as `factors`."""
    if isinstance(x, Module):
        raise TypeError(f"{who}: {name} must be {kinds}, not {a(type(x).__name__)}: "
                        "analysis.updates(model) returns those of a model")
    try:
        array = asnumpy(x)
    except ValueError:  # lists of unequal lengths
        array = np.array(None)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{who}: {name} must be {kinds}, of real numbers, not {describe(x)}")
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{who}: {name} has shape {array.shape}: give a matrix, with two axes and "
                         "at least one entry")
    array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{who}: {name} has numbers that are not finite: look for the step at "
                         "which training became unstable")
    return array


def norm(x: np.ndarray) -> float:
    """Return the Frobenius norm √Σ x², also where the squares would overflow or underflow."""
    largest = float(abs(x).max())
    return largest * float(np.linalg.norm(x / largest)) if largest else 0.0
