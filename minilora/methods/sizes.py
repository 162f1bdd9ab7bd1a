"""How many numbers a model has, by formula: V d + P d + L (12 d² + 13 d) + 2 d for a GPT-2."""

from __future__ import annotations

from typing import Any


def d_ff(c: Any) -> int:
    """The width of the MLP."""
    return int(c.d_ff or 4 * c.d_model)


def block(c: Any) -> int:
    """One block: q, k, v, o and the MLP with their biases, two norms; 12 d² + 13 d if d_ff = 4d."""
    d: int = c.d_model
    return 4 * (d * d + d) + (2 * d * d_ff(c) + d_ff(c) + d) + 4 * d


def total(c: Any) -> int:
    """Tables, blocks, the last norm; of an encoder: its first norm, and its head."""
    d: int = c.d_model
    tables, head = c.vocab_size + c.n_positions, 0
    if _is_encoder(c):
        tables += c.n_types + (c.padding_id + 1 if hasattr(c, "padding_id") else 0)
        head = d * d + d + (c.num_labels * (d + 1) if c.num_labels else 2 * d + c.vocab_size)
    return int(tables * d + c.n_layers * block(c) + 2 * d + head)


def biases(c: Any) -> int:
    """7 d + d_ff a block (11 d if d_ff = 4 d), the last norm's; of an encoder: the head's, too."""
    d: int = c.d_model
    head = 0
    if _is_encoder(c):
        head = d + (c.num_labels or d + c.vocab_size)
    return int(c.n_layers * (7 * d + d_ff(c)) + d + head)


def _is_encoder(c: Any) -> bool:
    if hasattr(c, "pos_att_type"):
        raise ValueError("count: there is no formula for all of a DeBERTa: count it on shapes")
    return hasattr(c, "n_types")
