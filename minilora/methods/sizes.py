"""Numbers of parameters by formula: V d + P d + L (12 d² + 13 d) + 2 d for a GPT-2."""

from __future__ import annotations

from typing import Any


def d_ff(c: Any) -> int:
    """Return the width of the MLP."""
    return int(c.d_ff or 4 * c.d_model)


def block(c: Any) -> int:
    """Count one block: q, k, v, o, MLP and two norms. 12 d² + 13 d if d_ff = 4 d."""
    d: int = c.d_model
    return (4 + _own(c)) * (d * d + d) + (2 * d * d_ff(c) + d_ff(c) + d) + 4 * d


def total(c: Any) -> int:
    """Count a model: tables, blocks and last norm; in an encoder first norm, head and DeBERTa's."""
    d: int = c.d_model
    rows = c.vocab_size + (c.n_positions if getattr(c, "position_biased_input", True) else 0)
    more = 0
    if hasattr(c, "n_types"):
        rows += c.n_types + (c.padding_id + 1 if hasattr(c, "padding_id") else 0)
        more = d * d + d + (c.num_labels * (d + 1) if c.num_labels else 2 * d + c.vocab_size)
    if hasattr(c, "pos_att_type"):
        more += bool(c.pos_att_type) * (2 * c.span * d + c.norm_rel_ebd * 2 * d)
        more += bool(c.conv_kernel_size) * (c.conv_kernel_size * d * d + 3 * d)
    return int(rows * d + c.n_layers * block(c) + 2 * d + more)


def biases(c: Any) -> int:
    """Count the biases: 7 d + d_ff for each block, 11 d if d_ff = 4 d; others as in `total`."""
    d, more = c.d_model, 0
    if hasattr(c, "n_types"):
        more = d + (c.num_labels or d + c.vocab_size)
    if hasattr(c, "pos_att_type"):
        more += bool(c.pos_att_type) * c.norm_rel_ebd * d + bool(c.conv_kernel_size) * 2 * d
    return int(c.n_layers * ((7 + _own(c)) * d + d_ff(c)) + d + more)


def _own(c: Any) -> int:
    """Count the layers of a DeBERTa block that only read distances."""
    return 0 if getattr(c, "share_att_key", True) else len(c.pos_att_type)
