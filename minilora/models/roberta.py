"""RoBERTa (Liu et al. 2019): BERT with one token type, and positions that skip padding."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .encoder import Encoder
from .inputs import EncoderConfig, Given


@dataclass(frozen=True)
class RobertaConfig(EncoderConfig):
    """The sizes of a RoBERTa; the defaults are RoBERTa base (Liu et al. 2019).

    The position table has padding_id + 1 more rows than n_positions; other packages count them too:
    514.
    """

    counted: ClassVar[Mapping[str, str]] = {
        "max_position_embeddings": ", without the padding_id + 1 rows before the first: 512 for 514"
    }
    vocab_size: int = 50265
    n_positions: int = 512
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    eps: float = 1e-5
    n_types: int = 1
    padding_id: int = 1  # the id of padding; positions start in the row after it

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integers(0, "padding_id")
        if self.n_positions == 512 + self.padding_id + 1:
            warnings.warn(
                f"RobertaConfig: n_positions is {self.n_positions}: it counts tokens, without the "
                "padding_id + 1 rows before them that max_position_embeddings counts too: "
                "RoBERTa's is 512",
                stacklevel=4,
            )


class Roberta(Encoder):
    """ids (batch, tokens) -> logits.

    Positions count as in the authors' code (fairseq's make_positions): from padding_id + 1, and
    padding has none. Padding is every id equal to padding_id, and every masked token.
    """

    config: RobertaConfig
    drops_twice = True

    def rows(self) -> int:
        return self.config.n_positions + self.config.padding_id + 1

    def positions(self, ids: np.ndarray, mask: Given) -> Any:
        """Return padding_id + 1, + 2, ... for tokens, padding_id for padding."""
        real = ids != self.config.padding_id
        if mask is not None:
            real &= mask
        return real.cumsum(axis=1) * real + self.config.padding_id
