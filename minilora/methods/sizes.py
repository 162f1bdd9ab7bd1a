"""Numbers of parameters by formula: V d + P d + L (12 d² + 13 d) + 2 d for a GPT-2."""

from __future__ import annotations

import math
from typing import Any


def block(c: Any) -> int:
    """Count one block: q, k, v, o, MLP and two norms. 12 d² + 13 d in a GPT-2 if d_ff = 4 d."""
    d: int = c.d_model
    matrices = sum(math.prod(shape) for shape in c.linears().values()) + _own(c) * d * d
    return int(matrices + _biases(c) + 2 * d)


def total(c: Any) -> int:
    """Count a model: tables, blocks and last norm; in an encoder first norm, head and DeBERTa's."""
    d: int = c.d_model
    if hasattr(c, "rope_theta"):  # no positions, no shifts; a head of its own, if it is not tied
        return int(c.vocab_size * d * (1 if c.tied else 2) + c.n_layers * block(c) + d)
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
    if hasattr(c, "rope_theta"):
        return int(c.n_layers * _biases(c))
    d, more = c.d_model, 0
    if hasattr(c, "n_types"):
        more = d + (c.num_labels or d + c.vocab_size)
    if hasattr(c, "pos_att_type"):
        more += bool(c.pos_att_type) * c.norm_rel_ebd * d + bool(c.conv_kernel_size) * 2 * d
    return int(c.n_layers * _biases(c) + d + more)


def _biases(c: Any) -> int:
    """Count the biases of one block: of its Linear layers and of its two norms."""
    widths = {name: d_out for name, (d_out, _) in c.linears().items()}
    if hasattr(c, "rope_theta"):  # q, k and v at most
        return int(c.qkv_bias * sum(widths[name] for name in "qkv"))
    return int(sum(widths.values()) + (2 + _own(c)) * c.d_model)


def _own(c: Any) -> int:
    """Count the layers of a DeBERTa block that only read distances."""
    return 0 if getattr(c, "share_att_key", True) else len(c.pos_att_type)
