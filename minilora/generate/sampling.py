"""The choice of the next token: penalty, temperature, top_k, top_p, in this order, then a draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..checks import integer, real


class Sampling(NamedTuple):
    """How the next token is chosen from the logits; `generate` describes the settings."""

    temperature: float
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None

    def check(self, who: str) -> None:
        """Raise ValueError for a setting that is out of range, or that has no effect."""
        real(who, "temperature", self.temperature, "[0, inf)")
        if self.top_k is not None:
            integer(who, "top_k", self.top_k, 1)
        if self.top_p is not None:
            real(who, "top_p", self.top_p, "(0, 1]")
        if self.repetition_penalty is not None:
            real(who, "repetition_penalty", self.repetition_penalty, "(0, inf)")
        if not self.temperature and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"{who}: top_{'p' if self.top_k is None else 'k'} has no effect at temperature 0, "
                "which takes the likeliest token: leave it out, or give a temperature above 0"
            )

    def choose(self, logits: np.ndarray, ids: Sequence[int], rng: np.random.Generator) -> int:
        """Return the id of the next token        logits: (vocab_size,)   ids: those before it"""
        if self.repetition_penalty is not None:
            logits = penalized(logits, ids, self.repetition_penalty)
        return sample(logits, self.temperature, self.top_k, self.top_p, rng)


def penalized(logits: np.ndarray, ids: Sequence[int], penalty: float) -> np.ndarray:
    """Return logits (vocab_size,), less likely for each id in `ids` if penalty > 1.

    Keskar et al. 2019, §4.1, divide the logit of such a token by the penalty. That makes it more
    likely where the logit is negative, so there the logit is multiplied.
    """
    logits, seen = logits.copy(), np.unique(ids)
    z = logits[seen]
    logits[seen] = np.where(z < 0, z * penalty, z / penalty)
    return logits


def likeliest(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids that may be drawn, likeliest first, and numbers in proportion to their
    probabilities        logits: (vocab_size,)   temperature: above 0
    """
    order = np.argsort(-logits, kind="stable")[:top_k]
    p = np.exp((logits[order] - logits[order[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:  # Holtzman et al. 2020, §3.1
        n = 1 + int(np.searchsorted(np.cumsum(p), top_p))
        order, p = order[:n], p[:n]
    return order, p


def sample(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None,
    rng: np.random.Generator,
) -> int:
    """Draw one token id from logits (vocab_size,); at temperature 0, take the likeliest."""
    if temperature == 0:
        return int(logits.argmax())
    order, p = likeliest(logits, temperature, top_k, top_p)
    drawn = np.searchsorted(np.cumsum(p), rng.random() * p.sum())
    return int(order[min(drawn, len(order) - 1)])
