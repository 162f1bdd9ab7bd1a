"""BERT (Devlin et al. 2019): a post-norm encoder with token types, pooled at its first token.

`Encoder` is BERT, and the other families say what is different. Pad on the right: positions are
counted from the left, whatever is padding. What elsewhere is the pooler is `head.dense` here, and
there with num_labels alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from .encoder import Encoder
from .inputs import EncoderConfig


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The sizes of a BERT; the defaults are BERT base, uncased (Devlin et al. 2019)."""

    vocab_size: int = 30522
    n_positions: int = 512
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_types: int = 2


class Bert(Encoder):
    """ids (batch, tokens) -> logits of the words; model(ids, mask, types), types 0 and 1."""
