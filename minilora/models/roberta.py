"""RoBERTa (Liu et al. 2019): BERT without a second type, positions counted by real tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import RobertaConfig
from .encoder import Encoder
from .inputs import Given


class Roberta(Encoder):
    """ids (batch, tokens) -> logits.

    Positions are counted as in the authors' code (fairseq's make_positions): from padding_id + 1,
    and padding takes none. Padding is an id of padding_id, and whatever the mask hides.
    """

    config: RobertaConfig
    drops_twice = True

    def rows(self) -> int:
        return self.config.n_positions + self.config.padding_id + 1

    def positions(self, ids: np.ndarray, mask: Given) -> Any:
        """padding_id + 1, + 2, ... for what is real, padding_id for what is not."""
        real = ids != self.config.padding_id
        if mask is not None:
            real &= mask
        return real.cumsum(axis=1) * real + self.config.padding_id
