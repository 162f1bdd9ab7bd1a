"""The sizes that all models share; each family's own config is in the family's file."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import real
from ..config import Config


@dataclass(frozen=True)
class ModelConfig(Config):
    """The sizes of a transformer."""

    vocab_size: int
    n_positions: int  # the longest input, in tokens
    d_model: int
    n_layers: int
    n_heads: int  # d_model is a multiple of it
    d_ff: int = 0  # 0: four times d_model
    dropout: float = 0.0  # of the embeddings and of each half block's output

    def __post_init__(self) -> None:
        self._integers(1, "vocab_size", "n_positions", "d_model", "n_layers", "n_heads")
        self._integers(0, "d_ff")
        who = type(self).__name__
        self._set(dropout=real(who, "dropout", self.dropout, "[0, 1)"))
        if self.d_model % self.n_heads:
            raise ValueError(
                f"{who}: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            )

    @property
    def kv_width(self) -> int:
        """The width of a key, all heads together."""
        return self.d_model

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return name -> (d_out, d_in) of the Linear layers of a block, as LoRA's targets."""
        d, d_ff = self.d_model, self.d_ff or 4 * self.d_model
        return {**dict.fromkeys("qkvo", (d, d)), "up": (d_ff, d), "down": (d, d_ff)}
