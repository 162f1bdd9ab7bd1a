"""The interface of an adapter, and the module that contains the adapters of one base module."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

from ..backend import Array, xp
from ..nn import Embedding, Module, Parameter
from ..tensor import Tensor
from .context import context

Factors = list[tuple[float, Parameter, Parameter]]  # (scale, B, A), ...


class Adapter(Module):
    """A module around another module, which it gets as an argument: forward(inner, *inputs).

    Without overrides it changes nothing. An adapter that only adds to a layer's weight defines
    `factors`; then it can be merged, verified and combined.
    """

    exclusive: ClassVar[str] = ""  # why it must be the only active adapter of its module
    needs_numbers: ClassVar[str] = ""  # why its layer's W cannot be stored as codes

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        inner, *others = inputs
        return inner(*others, **settings)

    def project(self, inner: Any, x: Tensor) -> Any:
        """Wrap a table that is also the model's head: x (..., d) -> scores (..., n)."""
        return inner(x)

    def window(self, positions: int, tokens: int) -> int:
        """Return the number of positions that are left for given tokens. See `Seam.window`."""
        return positions

    def factors(self) -> Factors | None:
        """Return [(scale, B, A), ...] with ΔW = Σ scale · B A, or its transpose for a table.

        B: (d, r)   A: (r, k). None: the adapter is not an update of W, so it cannot be merged.
        """
        return None

    def delta(self) -> Array:
        """Return ΔW = Σ scale · B A of `factors`, float64, (d, k)."""
        total: Array = sum(
            scale * (B.data.astype("float64") @ A.data.astype("float64"))
            for scale, B, A in self.factors() or ())
        return total

    def row_scale(self) -> Parameter | None:
        """Return DoRA's m, (d,): row i of W0 + ΔW is scaled to the length m_i; None: no scaling."""
        return None

    def trained(self) -> dict[str, Parameter]:
        """Return the trained parameters by name, as they are saved."""
        return dict(self.named_parameters())


class Adapted(Module):
    """A base module and its adapters, by name; each active adapter wraps the one before it.

    It replaces the base module in the model. Other attributes are the base module's.
    """

    def __init__(self, base: Module) -> None:
        self.base: Any = base
        self.training = base.training
        self.adapters: dict[str, Adapter] = {}
        self.active: tuple[str, ...] = ()

    def children(self) -> Iterator[tuple[str, Module | Parameter]]:
        yield "base", self.base
        yield from self.adapters.items()

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        rows = context().rows
        if rows is not None and id(self) in rows.modules:
            return rows.run(self, "forward", *inputs)
        return self.compose(self.base, "forward", self.active)(*inputs, **settings)

    def project(self, x: Tensor) -> Any:
        rows = context().rows
        if rows is not None and id(self) in rows.modules:
            return rows.run(self, "project", x)
        return self.compose(self.base.project, "project", self.active)(x)

    def around(self, inner: Any) -> Any:
        """See `Seam.around`: where the base is a seam, the adapters stand around a function."""
        rows = context().rows
        active = self.active if rows is None or id(self) not in rows.modules else ()
        return self.compose(self.base.around(inner), "forward", active)

    def compose(self, run: Any, call: str, names: tuple[str, ...]) -> Any:
        """Return the base's function `run`, wrapped by the named adapters."""
        for name in names:
            run = partial(getattr(self.adapters[name], call), run)
        return run

    def window(self, positions: int, tokens: int) -> int:
        for name in self.active:
            positions = self.adapters[name].window(positions, tokens)
        return positions

    def delta(self, names: Sequence[str] | None = None) -> Array:
        """Return W - W0 of these adapters, which all define `factors`; None: of the active ones.

        float64, W's shape.
        """
        base = self.base
        W0 = base.W.data.astype("float64")
        update, lengths = xp.zeros_like(W0), None
        for name in self.active if names is None else names:
            BA = self.adapters[name].delta()
            update += BA.T if isinstance(base, Embedding) else BA
            if (scale_of_rows := self.adapters[name].row_scale()) is not None:
                lengths = scale_of_rows
        if lengths is None:
            return update
        V = W0 + update
        return (lengths.data.astype("float64") / row_lengths(V))[:, None] * V - W0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "base" not in vars(self):
            raise AttributeError(name)
        return getattr(self.base, name)


def row_lengths(V: Array) -> Array:
    """Return the length of each row of V, (d,); 1 for a row of zeros, so that one can divide."""
    lengths = xp.sqrt((V * V).sum(axis=1))
    return xp.where(lengths == 0, xp.ones_like(lengths), lengths)
