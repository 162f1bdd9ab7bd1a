"""Bottleneck adapters (§5.1): h + U relu(D h + b) + c        h: (..., d)

h is the output of attention or of the MLP, before the skip connection adds it. D: (r, d), b: (r,),
U: (d, r), c: (d,); the model itself is frozen. U and c start at 0, so at first the model computes
exactly what it did.

|Θ| = L_Adpt · (2 d r + r + d) + 2 · L_LN · d: L_Adpt counts the adapters, L_LN their own layer
norms. Tables 2 to 4 and 15 list them; table 1 has the time that they add and LoRA does not.
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
    """The dtype of a method's own parameters: the model's, float32 at least."""
    layers = (m for _, m in walk(model) if isinstance(bare(m), Linear | Embedding))
    return np.promote_types(bare(next(layers)).dtype, "float32")


class Bottleneck(Adapter):
    """h + up(relu(down(h))), h the inner module's output; with a norm h + up(relu(down(ln(h))))."""

    def __init__(self, d: int, r: int, norm: bool, rng: np.random.Generator, dtype: Any) -> None:
        self.ln = LayerNorm(d, dtype=dtype) if norm else None
        self.down = Linear(d, r, rng=rng, dtype=dtype)
        self.up = Linear(r, d, std=0.0, rng=rng, dtype=dtype)
        self.up.W = Parameter(xp.zeros((d, r), dtype))

    def forward(self, inner: Any, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = inner(*args, **kwargs)
        z = h if self.ln is None else self.ln(h)
        return h + self.up(ops.relu(self.down(z)))


@dataclass(frozen=True)
class AdapterP(Method, called="adapter-p"):
    """Pfeiffer et al. 2021: after the MLP, without a norm of its own. L_Adpt = L, L_LN = 0.

    r   width of the bottleneck
    """

    r: int = 8
    after: ClassVar[Sequence[str]] = ("mlp",)
    norm: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._set(r=integer(type(self).__name__, "r", self.r, 1))

    def chosen(self, n_layers: int) -> Sequence[int]:
        """The blocks that get adapters."""
        return range(n_layers)

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Adapter]:
        if not hasattr(getattr(model, "config", None), "n_layers"):
            raise ValueError(
                f"{self.called} stands in the blocks of a transformer of minilora, and this model, "
                f"a {type(model).__name__}, has no config that counts them"
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
    """Lin et al. 2020: after the MLP, with a norm of its own. L_Adpt = L_LN = L.

    The norm stands in the adapter's own path, h + up(relu(down(ln(h)))), so this too is at first
    what the model was.
    """

    norm = True


@dataclass(frozen=True)
class AdapterD(AdapterP, called="adapter-d"):
    """AdapterDrop (Rücklé et al. 2020): Adapter-P in some blocks only. L_Adpt = their number.

    layers   the blocks that keep their adapter, from 0; None: the upper half. Which ones the paper
             dropped it does not say
    """

    layers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        if not isinstance(self.layers, list | tuple | range):
            raise ValueError(
                f"AdapterD: layers are numbers like (0, 2), not {describe(self.layers)}"
            )
        numbers = [integer("AdapterD", "each of layers", i) for i in self.layers]
        if not numbers:
            raise ValueError("AdapterD: layers must name a block: without one nothing is trained")
        self._set(layers=tuple(sorted(set(numbers))))

    def chosen(self, n_layers: int) -> Sequence[int]:
        layers = range(n_layers // 2, n_layers) if self.layers is None else self.layers
        if layers[-1] >= n_layers:
            raise ValueError(
                f"AdapterD: layers: there is no block {layers[-1]}: they are 0 to {n_layers - 1}"
            )
        return layers
