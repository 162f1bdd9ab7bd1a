"""BERT (Devlin et al. 2019): a post-norm encoder with token types, pooled at its first token.

`Encoder` is BERT, and the other families say what is different. Pad on the right: positions are
counted from the left, whatever is padding. What elsewhere is the pooler is `head.dense` here, and
there with num_labels alone.
"""

from __future__ import annotations

from .encoder import Encoder


class Bert(Encoder):
    """ids (batch, tokens) -> logits of the words; model(ids, mask, types), types 0 and 1."""
