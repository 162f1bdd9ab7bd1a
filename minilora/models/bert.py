"""BERT (Devlin et al. 2019): a post-norm encoder with token types, pooled at its first token.

`Encoder` is BERT; the other families override what differs. Pad on the right: positions count from
the left, padding included. The pooler of other implementations is `head.dense` here, which exists
with num_labels or head="pooler".
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
    """ids (batch, tokens) -> logits of the words; model(ids, mask, types) with types 0 and 1."""
