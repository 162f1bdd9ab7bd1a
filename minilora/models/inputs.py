"""Checks of an encoder's inputs: ids, mask and types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import choice, real
from .config import ModelConfig

Given = np.ndarray | None


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """The sizes of an encoder: those of a transformer, its token types and its head."""

    eps: float = 1e-12  # of every layer norm
    n_types: int = 0  # token types, such as first and second sentence; 0: none
    num_labels: int = 0  # above 0: a classifier
    # without labels, a score for each word, a vector for each sequence, or no head at all
    head: str = "words"

    def __post_init__(self) -> None:
        super().__post_init__()
        who = type(self).__name__
        self._integers(0, "n_types", "num_labels")
        choice(who, "head", self.head, ("words", "pooler", "none"))
        if self.num_labels and self.head != "words":
            raise ValueError(
                f"{who}: head={self.head!r} cannot act with num_labels {self.num_labels}, which "
                "makes a classifier: leave one of them out"
            )
        self._set(eps=real(type(self).__name__, "eps", self.eps, "(0, inf)"))


def checked(
    who: str, c: EncoderConfig, ids: Any, mask: Any, types: Any
) -> tuple[Any, Given, Given]:
    """Return ids, mask (bool) and types, each (batch, tokens) on the host, or raise ValueError."""
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or not ids.shape[1]:
        raise ValueError(
            f"{who}: ids must be integers (batch, tokens), one token at least, not {ids.dtype} "
            f"{ids.shape}: encode each text with the model's tokenizer"
        )
    if ids.shape[1] > c.n_positions:
        raise ValueError(
            f"{who}: ids are {ids.shape}, {ids.shape[1]} tokens, and n_positions is "
            f"{c.n_positions}: cut each text to {c.n_positions} tokens"
        )
    within(who, "id", ids, c.vocab_size, "vocab_size", "encode with the model's own tokenizer")
    if mask is not None:
        mask = like(who, "mask", mask, ids)
        wrong = mask[~np.isin(mask, (0, 1))]
        if wrong.size:
            raise ValueError(
                f"{who}: mask contains {wrong[0]}: give 1 for a token and 0 for padding"
            )
        mask = mask.astype(bool)
        if not mask.any(axis=1).all():
            raise ValueError(
                f"{who}: mask {mask.shape} hides all tokens of row {mask.any(axis=1).argmin()}: "
                "leave that row out"
            )
    if types is not None:
        if not c.n_types:
            raise ValueError(
                f"{who}: types {np.shape(types)} are given, but n_types is 0: leave them out"
            )
        types = like(who, "types", types, ids)
        if types.dtype.kind not in "iu":
            raise ValueError(f"{who}: types must be integers, as ids are, not {types.dtype}")
        within(who, "type", types, c.n_types, "n_types", "number them from 0, or leave them out")
    return ids, mask, types


def like(who: str, name: str, given: Any, ids: np.ndarray) -> np.ndarray:
    """Return `given` as an array; ValueError unless it has the shape of ids."""
    array = np.asarray(given)
    if array.shape != ids.shape:
        raise ValueError(f"{who}: {name} is {array.shape}: it must be {ids.shape}, as ids are")
    return array


def within(who: str, name: str, numbers: np.ndarray, n: int, size: str, remedy: str) -> None:
    """Raise ValueError unless all numbers are from 0 to n - 1."""
    wrong = numbers[(numbers < 0) | (numbers >= n)]
    if wrong.size:
        raise ValueError(
            f"{who}: the {name} {wrong[0]} is not from 0 to {n - 1}, {size} is {n}: {remedy}"
        )
