"""What the tests draw from: shapes, arrays, small models, and adapters that are not zero."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import minilora as ml
from minilora import lora

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])


def normal(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    """Gaussian numbers on the host."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def gpt2(seed: int = 0, dtype: str = "float64", **sizes: float) -> ml.GPT2:
    """A tiny GPT-2 whose every parameter is random: no bias is 0 and no gain is 1."""
    config = {"vocab_size": 11, "n_positions": 12, "d_model": 8, "n_layers": 2, "n_heads": 2}
    config |= sizes
    model = ml.GPT2(ml.GPT2Config(**config), rng=seed, dtype=dtype)
    shake(model.parameters(), seed, 0.2)
    return model


def shake(parameters, seed: int, size: float = 0.1) -> None:
    """Add Gaussian noise: an adapter whose B is 0 would prove nothing."""
    rng = np.random.default_rng(seed)
    for p in parameters:
        noise = (rng.standard_normal(p.shape) * size).astype(np.dtype(str(p.dtype)))
        p.data += ml.backend.asarray(noise)


def adapted(seed: int = 0, dtype: str = "float64", r: int = 3, alpha: float = 5.0, **config):
    """(model, paths) with an adapter of B ≠ 0 and alpha ≠ r."""
    model = gpt2(seed, dtype, **config.pop("sizes", {}))
    paths = lora.attach(model, ml.LoRAConfig(r=r, alpha=alpha, **config), rng=seed + 1)
    shake(model.trainable_parameters().values(), seed + 2)
    return model, paths


def ids(seed: int = 0, batch: int = 2, tokens: int = 7, vocabulary: int = 11) -> np.ndarray:
    """Token ids on the host, (batch, tokens)."""
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, tokens))
