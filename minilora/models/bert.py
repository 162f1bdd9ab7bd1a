"""BERT (Devlin et al. 2019): a post-norm encoder with token types, pooled at its first token.

`Encoder` is BERT; the others say what is different. Pad on the right: positions are counted from
the left, whatever is padding. The pooler is the head's `dense`, with num_labels.
"""

from __future__ import annotations

from .encoder import Encoder


class Bert(Encoder):
    """ids (batch, tokens) -> logits of the words; model(ids, mask, types), types 0 and 1."""
