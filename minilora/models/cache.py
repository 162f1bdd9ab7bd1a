"""The key/value cache of generation, and the window of a model."""

from __future__ import annotations

from typing import Any

from ..backend import Array, xp
from ..tensor import Tensor


class Cache:
    """Keys and values of the tokens that one attention layer has read; capacity: `size` tokens."""

    def __init__(self, batch: int, size: int, d_model: int, dtype: Any) -> None:
        self.kv: Array = xp.empty((2, batch, size, d_model), dtype)
        self.n = 0  # tokens in the cache

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch, m, d); return all keys and all values, (batch, n + m, d) each."""
        start, self.n = self.n, self.n + k.shape[1]
        self.kv[0, :, start : self.n], self.kv[1, :, start : self.n] = k.data, v.data
        return Tensor.of(self.kv[0, :, : self.n]), Tensor.of(self.kv[1, :, : self.n])


def window(model: Any, tokens: int) -> int:
    """Return the number of tokens that the model can read at once: its positions, minus those of
    trained tokens. Raises ValueError if `tokens` tokens must be read together and do not fit.
    """
    positions: int = model.config.n_positions
    seam: Any = getattr(model, "embed", None)  # a user's model may have none, or a table
    return seam.window(positions, tokens) if hasattr(seam, "window") else positions
