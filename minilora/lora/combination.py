"""A weighted combination of adapters, as a new adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..adapters.files import exact
from ..adapters.places import adapted
from ..adapters.registry import _activate, install, state_of
from ..adapters.transaction import all_or_nothing
from ..backend import asarray, asnumpy
from ..checks import choice, integer, real
from ..nn import Module
from ..words import our_words
from .config import LoRAConfig

Term = tuple[float, np.ndarray, np.ndarray]  # weight · scale, B, A


@our_words
@all_or_nothing
def combine(
    model: Module, weights: Mapping[str, float], how: str = "cat", name: str = "combined",
    r: int | None = None,
) -> dict[str, float]:
    """Attach a new adapter with ΔW = Σ weight · ΔW of the named adapters; activate it, frozen.

    weights   name -> weight w;   ΔW = s B A with s = alpha / r, layer by layer
    how       "cat": B = [w1 s1 B1, w2 s2 B2, ...], A = [A1; A2; ...]: the exact sum, of rank Σ r
              "svd": the nearest matrix of rank r to the sum (Eckart and Young)
              "linear": B = Σ √(w s) B_i, A = Σ √(w s) A_i: of the common rank, with the cross
              terms B_i A_j (if w s is negative, B_i gets the sign)
    r         the rank for "svd"; None: the largest rank of the named adapters

    Returns path -> |result - Σ| / |Σ| (Frobenius), the relative error of the result. Raises
    ValueError for adapters that are not plain updates B A of a weight, and for "linear" with
    different ranks.
    """
    state = state_of(model, *weights)
    choice("combine", "how", how, tuple(HOW))
    if r is not None and how != "svd":
        raise ValueError(f'combine: {how!r} determines the rank: give r with how="svd" only')
    shares = {n: real("combine", f"weights[{n!r}]", w) for n, w in weights.items()}
    for n in shares:
        if state.copies[n]:
            raise ValueError(
                f"combine: {n!r} trains a copy of a parameter: give adapters with A and B only")
    sums: dict[str, list[Term]] = {}
    for path, module in adapted(model).items():
        for n, w in shares.items():
            if n in module.adapters:
                sums.setdefault(path, []).append(_term(path, n, module.adapters[n], w))
    if not sums:
        raise ValueError("combine: give at least one adapter, as in {'a': 0.5, 'b': 0.5}")
    results = {path: HOW[how](path, terms, r) for path, terms in sums.items()}
    ranks = {exact(path): len(A) for path, (_, A) in results.items()}
    config = LoRAConfig(  # its scale is 1
        r=max(ranks.values()), alpha=max(ranks.values()), targets=tuple(ranks),
        rank_pattern=ranks, alpha_pattern={path: float(rank) for path, rank in ranks.items()},
    )
    state = install(model, config, name, np.random.default_rng(0))
    errors = {}
    for path, (B, A) in results.items():
        new: Any = adapted(model)[path].adapters[name].requires_grad_(False)
        for p, x in ((new.B, B), (new.A, A)):
            p.data[...] = asarray(x.astype(str(p.dtype)))
        errors[path] = _distance(sums[path], asnumpy(new.delta()))
    _activate(model, state, [name])
    return errors


def _term(path: str, name: str, adapter: Any, weight: float) -> Term:
    factors = adapter.factors()
    if factors is None or adapter.row_scale() is not None:
        raise ValueError(
            f"combine: {name!r} at {path} is a {type(adapter).__name__}, not a plain update B A: "
            "give LoRA adapters"
        )
    first = factors[0][0]  # several factors equal one of a higher rank
    B = np.hstack([s / first * asnumpy(B).astype("float64") for s, B, _ in factors])
    A = np.vstack([asnumpy(A).astype("float64") for _, _, A in factors])
    return weight * first, B, A


def _cat(path: str, terms: list[Term], r: int | None) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([s * B for s, B, _ in terms]), np.vstack([A for _, _, A in terms])


def _svd(path: str, terms: list[Term], r: int | None) -> tuple[np.ndarray, np.ndarray]:
    r = integer("combine", "r", max(len(A) for _, _, A in terms) if r is None else r, 1)
    B, A = _cat(path, terms, r)
    (Q, R), (P, S) = np.linalg.qr(B), np.linalg.qr(A.T)  # B A = Q (R Sᵀ) Pᵀ, and R Sᵀ is small
    U, s, V = np.linalg.svd(R @ S.T)
    root = np.sqrt(s[:r])
    return Q @ U[:, :r] * root, root[:, None] * (V[:r] @ P.T)


def _linear(path: str, terms: list[Term], r: int | None) -> tuple[np.ndarray, np.ndarray]:
    if len(ranks := {len(A) for _, _, A in terms}) > 1:
        raise ValueError(
            f'combine: {path}: "linear" takes adapters of one rank, not of {sorted(ranks)}: '
            'give how="cat" or "svd"')
    B: Any = sum(np.sign(s) * abs(s) ** 0.5 * B for s, B, _ in terms)
    A: Any = sum(abs(s) ** 0.5 * A for s, _, A in terms)
    return B, A


HOW: dict[str, Any] = {"cat": _cat, "svd": _svd, "linear": _linear}


def _distance(terms: list[Term], result: np.ndarray) -> float:
    wanted: Any = sum(s * B @ A for s, B, A in terms)
    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(result - wanted)) / size if size else 0.0
