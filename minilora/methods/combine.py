"""Several LoRA adapters made one, and different ones for the rows of one batch.

§4.2 names the latter as what is not straightforward once B A is added into W: here it is not added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..adapters.transaction import all_or_nothing
from ..backend import asarray, asnumpy
from ..backend.settings import telling
from ..checks import choice, real, whole
from ..lora.config import LoRAConfig
from ..lora.convert import activate, adapters_of, install, layers_of
from ..lora.layers import LoRALinear
from ..nn import Module
from ..tensor import Tensor

Factors = list[tuple[float, np.ndarray, np.ndarray]]  # weight · scale, B, A


@all_or_nothing
def combine(
    model: Module, weights: Mapping[str, float], how: str = "cat", name: str = "combined",
    r: int | None = None,
) -> dict[str, float]:
    """A new adapter for Σ weight · ΔW of those that are named, activated, frozen.

    weights   name -> weight, w; ΔW = s B A with s = alpha / r, by layer
    how       "cat": B = [w1 s1 B1, w2 s2 B2, ...], A = [A1; A2; ...]: exactly the sum, of rank Σ r
              "svd": the nearest matrix of rank r to the sum (Eckart and Young)
              "linear": B = Σ √(w s) B_i, A = Σ √(w s) A_i: of their one rank, and with cross terms
              B_i A_j that nobody asked for (of a negative w s, B_i gets the sign)
    r         the rank for "svd"; None: the largest of theirs

    Returns path -> |made - Σ| / |Σ| (Frobenius): how far what was made is from what was asked for.
    Raises ValueError for adapters with whole parameters, and for "linear" of unlike ranks.
    """
    state = adapters_of(model, *weights)
    choice("combine", "how", how, ("cat", "svd", "linear"))
    if r is not None and how != "svd":
        raise ValueError(f'combine: r is for how="svd": {how!r} has a rank of its own')
    if copied := [n for n in weights if state.whole[n]]:
        raise ValueError(f"combine: {copied[0]!r} has whole parameters: A and B alone add up")
    share = {n: real("combine", f"weights[{n!r}]", w) for n, w in weights.items()}
    made, layers = {}, layers_of(model)
    for path, layer in layers.items():
        held = [(w, layer.adapters[n].plain()) for n, w in share.items() if n in layer.adapters]
        if held:
            factors = [(w * a.scale, _wide(a.B), _wide(a.A)) for w, a in held]
            made[path] = factors, *HOW[how](path, factors, r)
    if not made:
        raise ValueError("combine: it takes at least one adapter, as in {'a': 0.5, 'b': 0.5}")
    plan = {path: (len(A), float(len(A))) for path, (_, B, A) in made.items()}  # of scale 1
    most = max(rank for rank, _ in plan.values())
    config = LoRAConfig(r=most, alpha=most, targets=tuple(plan))
    install(model, name, config, plan, (), np.random.default_rng(0))
    for path, (_, B, A) in made.items():
        new = layers_of(model)[path].adapters[name].requires_grad_(False)
        for p, x in ((new.B, B), (new.A, A)):
            p.data[...] = asarray(x.astype(str(p.dtype)))
    activate(model, name)
    now = layers_of(model)
    return {at: _off(factors, now[at].adapters[name]) for at, (factors, _, _) in made.items()}


def _cat(path: str, factors: Factors, r: int | None) -> tuple[np.ndarray, np.ndarray]:
    return np.hstack([s * B for s, B, _ in factors]), np.vstack([A for _, _, A in factors])


def _svd(path: str, factors: Factors, r: int | None) -> tuple[np.ndarray, np.ndarray]:
    r = whole("combine", "r", max(len(A) for _, _, A in factors) if r is None else r, 1)
    B, A = _cat(path, factors, r)
    (Q, R), (P, S) = np.linalg.qr(B), np.linalg.qr(A.T)  # B A = Q (R Sᵀ) Pᵀ, and that is small
    U, s, V = np.linalg.svd(R @ S.T)
    root = np.sqrt(s[:r])
    return Q @ U[:, :r] * root, root[:, None] * (V[:r] @ P.T)


def _linear(path: str, factors: Factors, r: int | None) -> tuple[np.ndarray, np.ndarray]:
    if len(ranks := {len(A) for _, _, A in factors}) > 1:
        raise ValueError(f'combine: {path}: "linear" takes one rank, not {sorted(ranks)}')
    B: Any = sum(np.sign(s) * abs(s) ** 0.5 * B for s, B, _ in factors)
    A: Any = sum(abs(s) ** 0.5 * A for s, _, A in factors)
    return B, A


HOW = {"cat": _cat, "svd": _svd, "linear": _linear}


def _wide(p: Any) -> np.ndarray:
    return np.asarray(asnumpy(p), "float64")


def _off(factors: Factors, made: Any) -> float:
    wanted: Any = sum(s * B @ A for s, B, A in factors)
    size = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(asnumpy(made.delta()) - wanted)) / size if size else 0.0


@contextmanager
def per_row(model: Module, names: Sequence[str]) -> Iterator[None]:
    """Inside, each row of a batch has the adapter that is named for it; "base": none.

    with lora.per_row(model, ["poet", "base", "clerk"]): model(ids)      ids: (3, tokens)
    Each row is what it would be alone, in training as in generation. In this thread only. Raises
    ValueError for adapters of embeddings, with lengths (DoRA) or with whole parameters.
    """
    names = [names] if isinstance(names, str) else [*names]
    state = adapters_of(model, *(name for name in names if name != "base"))
    if copied := [n for n in names if n != "base" and state.whole[n]]:
        raise ValueError(f"per_row: {copied[0]!r} has whole parameters, which all rows share")
    for path, layer in layers_of(model).items():
        if type(layer) is not LoRALinear and not layer.adapters.keys().isdisjoint(names):
            raise ValueError(
                f"per_row: {path} is a {type(layer).__name__}, whose adapter counts for all rows: "
                "it takes LoRA of Linear layers"
            )

    ours = {id(layer) for layer in layers_of(model).values()}

    def rows(layer: Any) -> list[Any]:
        if id(layer) not in ours:  # of another model
            return [layer.adapters[name] for name in layer.active]
        return [Rows(a, n, names) for n, a in layer.adapters.items() if n in names]

    with telling(rows=rows):
        yield


class Rows:
    """An adapter that counts for the rows of its name."""

    def __init__(self, adapter: Any, name: str, names: Sequence[str]) -> None:
        self.adapter, self.mine = adapter, np.array([other == name for other in names])

    def __call__(self, x: Tensor) -> Tensor:
        if len(x.shape) < 3 or x.shape[0] != len(self.mine):
            raise ValueError(f"per_row: {len(self.mine)} names, and the batch is {x.shape}")
        mask = asarray(self.mine.astype(str(x.dtype))[:, None, None])
        return self.adapter(x) * mask  # type: ignore[no-any-return]

    def delta(self) -> Any:
        raise ValueError("per_row: no one W holds what differs by row: merge outside of it")
