"""What a model is asked to continue, checked before it runs, and how much of it can be read."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import describe
from ..models.encoder import Encoder


def listed(ids: Any) -> bool:
    """Return whether ids is a list of sequences, which may have unlike lengths."""
    return isinstance(ids, list | tuple) and any(np.ndim(row) for row in ids)


def sequences(who: str, model: Any, ids: Any) -> list[list[int]]:
    """Return the sequences of ids: (tokens,), (batch, tokens), or a list of (tokens,)."""
    if issubclass(type(model), Encoder):
        raise TypeError(
            f"{who}: a {type(model).__name__} is an encoder, which continues no text: give a "
            "decoder, such as ml.GPT2"
        )
    vocab_size, rows = model.config.vocab_size, list[list[int]]()
    for given in ids if listed(ids) else [ids]:
        some = np.atleast_1d(given)
        if some.ndim > (1 if listed(ids) else 2) or not some.size:
            raise ValueError(
                f"{who}: ids must be (tokens,), (batch, tokens) or a list of (tokens,), not "
                f"{some.shape}, with at least one token"
            )
        if some.dtype.kind not in "iu":
            raise TypeError(
                f"{who}: ids must be integers, not {describe(given)}: "
                "model.tokenizer.encode(text) returns the ids of a text"
            )
        for i in some[(some < 0) | (some >= vocab_size)].tolist():
            raise ValueError(
                f"{who}: id {i} is not in the vocabulary, 0 to {vocab_size - 1}: "
                "encode the text with the model's own tokenizer"
            )
        rows += np.atleast_2d(some).tolist()
    return rows


def window(model: Any, tokens: int) -> int:
    """Return the number of tokens that the model can read at once: its positions, minus those of
    trained tokens. Raises ValueError if `tokens` tokens must be read together and do not fit.
    """
    positions: int = model.config.n_positions
    seam: Any = getattr(model, "embed", None)  # a user's model may have none, or a table
    return seam.window(positions, tokens) if hasattr(seam, "window") else positions
