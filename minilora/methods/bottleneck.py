"""Bottleneck adapters (§5.1): h + U relu(D h + b) + c        h: (..., d)

h is the output of attention or of the MLP, before the skip connection adds it. D: (r, d), b: (r,),
U: (d, r), c: (d,). The model is frozen. U and c start at 0, so at the start the model computes
exactly what the base computes.

|Θ| = L_Adpt · (2 d r + r + d) + 2 · L_LN · d, with L_Adpt adapters and L_LN trained layer norms.
Tables 2 to 4 and 15 list the sizes. Table 1 shows the inference time that adapters add.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..adapters import Adapter, Method
from ..adapters.places import bare, walk
from ..backend import xp
from ..checks import describe, integer
from ..nn import Embedding, LayerNorm, Linear, Module, Parameter
from ..tensor import Tensor


def own_dtype(model: Module) -> np.dtype[Any]:
    """Return the dtype of a method's own parameters: the model's, at least float32."""
    layers = (m for _, m in walk(model) if isinstance(bare(m), Linear | Embedding))
    return np.promote_types(bare(next(layers)).dtype, "float32")


class Bottleneck(Adapter):
    """h + up(relu(down(h))), or h + up(relu(down(ln(h)))); h is the inner module's output."""

    def __init__(self, d: int, r: int, norm: bool, rng: np.random.Generator, dtype: Any) -> None:
        self.ln = LayerNorm(d, dtype=dtype) if norm else None
        self.down = Linear(d, r, rng=rng, dtype=dtype)
        self.up = Linear(r, d, std=0.0, rng=rng, dtype=dtype)
        self.up.W = Parameter(xp.zeros((d, r), dtype=dtype))

    def forward(self, inner: Any, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = inner(*args, **kwargs)
        z = h if self.ln is None else self.ln(h)
        return h + self.up(ops.relu(self.down(z)))


@dataclass(frozen=True)
class AdapterP(Method, called="adapter-p"):
    """Pfeiffer et al. 2021: after the MLP, without a new norm. L_Adpt = L, L_LN = 0.

    r           the width of the bottleneck
    trainable   patterns of other parameters to train in full, such as a task's head
    """

    r: int = 8
    trainable: Sequence[str] = ()
    after: ClassVar[Sequence[str]] = ("mlp",)
    norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(r=integer(type(self).__name__, "r", self.r, 1))

    def chosen(self, n_layers: int) -> Sequence[int]:
        """Return the numbers of the blocks that get adapters."""
        return range(n_layers)

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Adapter]:
        if not hasattr(getattr(model, "config", None), "n_layers"):
            raise ValueError(
                f"{self.called}: a {type(model).__name__} has no config.n_layers: use a model with "
                "blocks, such as ml.GPT2"
            )
        c, dtype = model.config, own_dtype(model)
        return {
            f"blocks.{i}.{x}": Bottleneck(c.d_model, self.r, self.norm, rng, dtype)
            for i in self.chosen(c.n_layers)
            for x in self.after
        }

    def count(self, config: Any) -> int:
        d, r = config.d_model, self.r
        n = len(self.chosen(config.n_layers)) * len(self.after)
        return n * (2 * d * r + r + d) + 2 * n * self.norm * d  # type: ignore[no-any-return]


@dataclass(frozen=True)
class AdapterH(AdapterP, called="adapter-h"):
    """Houlsby et al. 2019: after attention and after the MLP. L_Adpt = 2 L, L_LN = 0."""

    after = ("attn", "mlp")


@dataclass(frozen=True)
class AdapterL(AdapterP, called="adapter-l"):
    """Lin et al. 2020: after the MLP, with a new norm. L_Adpt = L_LN = L.

    The norm is inside the adapter, h + up(relu(down(ln(h)))). So the model starts as the base here
    too.
    """

    norm = True


@dataclass(frozen=True)
class AdapterD(AdapterP, called="adapter-d"):
    """AdapterDrop (Rücklé et al. 2020): Adapter-P in some blocks only. L_Adpt = their number.

    layers   the blocks that keep their adapter, from 0; None: the upper half, because the paper
             does not say which ones it dropped
    """

    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if not isinstance(self.layers, list | tuple | range):
            raise ValueError(
                f"AdapterD: layers must be integers such as (0, 2), not {describe(self.layers)}"
            )
        numbers = [integer("AdapterD", "each of layers", i) for i in self.layers]
        if not numbers:
            raise ValueError("AdapterD: layers is empty, so nothing is trained: name a block")
        self._set(layers=tuple(sorted(set(numbers))))

    def chosen(self, n_layers: int) -> Sequence[int]:
        layers = range(n_layers // 2, n_layers) if self.layers is None else self.layers
        if layers[-1] >= n_layers:
            raise ValueError(
                f"AdapterD: layers: unknown block {layers[-1]}: choose from 0 to {n_layers - 1}"
            )
        return layers
