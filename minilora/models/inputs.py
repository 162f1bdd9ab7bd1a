"""What an encoder is given, checked: ids, which of them are padding, and their types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import real
from .config import ModelConfig

Given = np.ndarray | None


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """What an encoder has beside: of the heads, and of the rows that are added to each token's."""

    eps: float = 1e-12  # of every layer norm
    n_types: int = 0  # token types, such as first and second sentence; 0: no table of them
    num_labels: int = 0  # 0: a head that fills masks in; else one that tells classes apart

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integers(0, "n_types", "num_labels")
        self._set(eps=real(type(self).__name__, "eps", self.eps, "(0, inf)"))


def checked(
    who: str, c: EncoderConfig, ids: Any, mask: Any, types: Any
) -> tuple[Any, Given, Given]:
    """ids, mask (bool) and types, each (batch, tokens) on the host; ValueError for any other."""
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
        odd = mask[~np.isin(mask, (0, 1))]
        if odd.size:
            raise ValueError(
                f"{who}: mask has {odd[0]}: it is 1 where a token is real, 0 where it is padding"
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
                f"{who}: types are given, {np.shape(types)}, and n_types is 0: leave them out"
            )
        types = like(who, "types", types, ids)
        if types.dtype.kind not in "iu":
            raise ValueError(f"{who}: types must be integers as ids are, not {types.dtype}")
        within(who, "type", types, c.n_types, "n_types", "number them from 0, or leave them out")
    return ids, mask, types


def like(who: str, name: str, given: Any, ids: np.ndarray) -> np.ndarray:
    """What is given for each token, as an array of the same shape."""
    array = np.asarray(given)
    if array.shape != ids.shape:
        raise ValueError(f"{who}: {name} is {array.shape}: it must be {ids.shape}, as ids are")
    return array


def within(who: str, name: str, held: np.ndarray, n: int, size: str, remedy: str) -> None:
    """Raise ValueError unless each is one of n."""
    odd = held[(held < 0) | (held >= n)]
    if odd.size:
        raise ValueError(
            f"{who}: the {name} {odd[0]} is not from 0 to {n - 1}, {size} is {n}: {remedy}"
        )
