"""RoBERTa (Liu et al. 2019): BERT whose positions are counted by real tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import RobertaConfig
from .encoder import Encoder


class Roberta(Encoder):
    """ids (batch, tokens) -> logits; an id of padding_id is at no position, with a mask or none."""

    config: RobertaConfig

    def rows(self) -> int:
        return self.config.n_positions + self.config.padding_id + 1

    def positions(self, ids: np.ndarray, mask: Any) -> Any:
        """padding_id + 1, + 2, ... for what is no padding; padding_id for what is."""
        real = ids != self.config.padding_id
        if mask is not None:
            real &= np.asarray(mask).astype(bool)
        return real.cumsum(axis=1) * real + self.config.padding_id
