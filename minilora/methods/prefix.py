"""Tokens that are trained instead of the model (§5.1): `lp` before each prompt, `li` after it.

They are no words of the vocabulary, but take positions, as tokens do, and places in the cache. Of n
given tokens the model computes lp + n + li, and gives what belongs to the given ones: in a decoder,
what follows the prompt is read from the last of `li`, which stands behind it. For an encoder the
prompt is the row without its padding, and each token is read at its own place.

They start random, N(0, 0.02²), and are there from the first step on. So these methods do not start
as the base, as all others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..backend import asarray, normal
from ..backend.settings import telling, told
from ..checks import whole
from ..models.inputs import checked
from ..nn import Module, Parameter
from ..tensor import Tensor
from .applied import Method, wide


def prompt(tokens: int | Sequence[int]) -> AbstractContextManager[None]:
    """Inside, the first `tokens` of what a model is given are the prompt, of all rows or of each.

    with methods.prompt(5): generate(model, ids, 20)        only `li` has to know
    """
    return telling(prompt=np.asarray(tokens))


class Layout(Module):
    """Around a decoder's forward: the trained tokens are put among the given ones."""

    def __init__(self, who: str, lp: int, li: int) -> None:
        self.who, self.lp, self.li = who, lp, li

    def forward(self, inner: Any, ids: Any, cache: Any = None) -> Tensor:
        ids = np.asarray(ids)
        if ids.ndim != 2 or (cache and cache[0].n):  # a wrong shape; or they are in the cache
            return inner(ids, cache)  # type: ignore[no-any-return]
        batch, n = ids.shape
        ends = self.ends(batch, n)
        places, which = self.places(inner, ids, ends)
        last = np.arange(n) == ends[:, None] - 1  # the prompt's last token: through the last of li
        with telling(trained=which, read=places + self.li * last):
            return inner(among(ids, places, which, 0), cache)  # type: ignore[no-any-return]

    def places(
        self, inner: Any, ids: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of the given tokens among all, (batch, n); which trained one is where, -1: none."""
        lp, li, (batch, n) = self.lp, self.li, ids.shape
        most = inner.__self__.config.n_positions if hasattr(inner, "__self__") else 0
        if most and n + lp + li > most:
            raise ValueError(
                f"{self.who}: {n} tokens and {lp + li} trained ones are more than n_positions, "
                f"{most}: give it {most - lp - li} tokens at most"
            )
        at = np.arange(n)[None]
        places = lp + at + li * (at >= ends[:, None])
        which, free = np.full((batch, lp + n + li), -1), np.ones((batch, lp + n + li), bool)
        np.put_along_axis(free, places, False, 1)
        which[free] = np.tile(np.arange(lp + li), batch)
        return places, which

    def ends(self, batch: int, n: int) -> np.ndarray:
        """Where each row's prompt ends."""
        ends = told("prompt")
        if not self.li:
            return np.full(batch, n)
        if ends is None:
            raise ValueError(
                f"{self.who}: li={self.li} tokens come after the prompt: say where it ends, as in "
                "with methods.prompt(tokens): model(ids)"
            )
        if ends.dtype.kind not in "iu" or ends.shape not in ((), (batch,)):
            raise ValueError(
                f"{self.who}: a prompt's length is one whole number, or one of each of the {batch} "
                f"rows, not {ends.dtype} {ends.shape}"
            )
        if not (ends.min() >= 0 and ends.max() <= n):
            raise ValueError(
                f"{self.who}: prompts of {ends.min()} to {ends.max()} tokens in rows of {n}: the "
                "first call has to hold them whole"
            )
        return np.broadcast_to(ends, batch)

    def window(self, positions: int, tokens: int) -> int:
        """See `models.cache.window`."""
        size = positions - self.lp - self.li
        if size < 1 or (self.li and tokens > size):
            raise ValueError(
                f"{self.who}: {tokens} tokens and {self.lp + self.li} trained ones are more than "
                f"n_positions, {positions}" + ", and the prompt has to stay" * bool(self.li)
            )
        return size


class Around(Layout):
    """Around an encoder's `encode`: the same, and what it says of the given tokens."""

    def forward(self, inner: Any, ids: Any, mask: Any = None, types: Any = None) -> Tensor:
        model = inner.__self__
        ids, mask, types = checked(type(model).__name__, model.config, ids, mask, types)
        batch, n = ids.shape
        ends = np.full(batch, n) if mask is None else n - np.argmax(mask[:, ::-1], 1)
        places, which = self.places(inner, ids, ends)
        no_padding = int(getattr(model.config, "padding_id", 1) == 0)
        ids, mask, types = (
            x if x is None else among(x, places, which, other)
            for x, other in ((ids, no_padding), (mask, True), (types, 0))
        )
        with telling(trained=which):
            return picked(inner(ids, mask, types), places)


def among(given: np.ndarray, places: np.ndarray, which: np.ndarray, other: Any) -> np.ndarray:
    """What is given, at its places in longer rows; `other` where trained tokens are."""
    out = np.full(which.shape, other, given.dtype)
    np.put_along_axis(out, places, given, 1)
    return out


def picked(x: Tensor, at: np.ndarray) -> Tensor:
    """x[row, at[row]]        x: (batch, tokens, d)   at: (batch, n)   out: (batch, n, d)"""
    batch, n, d = x.shape
    return ops.embedding(x.reshape(batch * n, d), at + n * np.arange(batch)[:, None])


class Trained(Module):
    """E: (lp + li, d), what stands at the places of the trained tokens."""

    def __init__(self, n: int, d: int, rng: np.random.Generator, dtype: Any) -> None:
        self.E = Parameter(normal(rng, (n, d), 0.02, dtype))

    def placed(self, x: Tensor) -> Tensor:
        """x with E at those places; x itself in a call that has none."""
        which = told("trained")
        if which is None:
            return x
        ours = asarray((which >= 0)[..., None].astype(str(x.dtype)))
        y: Tensor = (
            x * (1 - ours) + ops.embedding(self.E, np.maximum(which, 0), dtype=x.dtype) * ours
        )
        return y


class Read(Module):
    """Around the last norm: only what the given tokens are read from goes on to the head."""

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        read = told("read")
        return inner(x if read is None else picked(x, read))  # type: ignore[no-any-return]


class After(Trained):
    """Around the table of tokens, or the sum of embeddings: what comes out has them in it."""

    def forward(self, inner: Any, x: Any) -> Tensor:
        return self.placed(inner(x))


class Before(Trained):
    """Around a block: what came of the trained tokens so far is replaced."""

    def forward(self, inner: Any, *given: Any, **how: Any) -> Tensor:
        def own(x: Any) -> Any:  # of what has a vector for each token: (batch, tokens, d)
            return self.placed(x) if isinstance(x, Tensor) and len(x.shape) == 3 else x

        out: Tensor = inner(*map(own, given), **{name: own(x) for name, x in how.items()})
        return out


@dataclass(frozen=True)
class PreEmbed(Method, called="preembed"):
    """Prefix-embedding tuning, PreEmbed (§5.1; tables 4, 15): what is trained is the embeddings of
    the lp + li tokens. |Θ| = d (lp + li).

    lp   how many come before the prompt
    li   how many come after it; then `methods.prompt` has to say where it ends
    """

    lp: int = 8
    li: int = 0

    def __post_init__(self) -> None:
        for name in ("lp", "li"):
            self._set(**{name: whole(type(self).__name__, name, getattr(self, name))})
        if not self.lp + self.li:
            raise ValueError(f"{type(self).__name__}: lp + li must be 1 at least: give one of them")

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Module]:
        if self.lp + self.li >= (most := model.config.n_positions):
            raise ValueError(
                f"{self.called}: lp + li = {self.lp + self.li} of n_positions, {most}: take fewer: "
                "the prompt takes places, too"
            )
        lay = self.called, self.lp, self.li
        decoder: dict[str, Module] = {"forward": Layout(*lay), "ln_f": Read()}
        parts = decoder if hasattr(model, "new_cache") else {"encode": Around(*lay)}
        return parts | self.tokens(model.config, rng, wide(model))

    def tokens(self, c: Any, rng: np.random.Generator, dtype: Any) -> dict[str, Module]:
        """Where their vectors go."""
        return {"tok": After(self.lp + self.li, c.d_model, rng, dtype)}

    def count(self, config: Any) -> int:
        return config.d_model * (self.lp + self.li)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PreLayer(PreEmbed, called="prelayer"):
    """Prefix-layer tuning, PreLayer (§5.1; tables 3, 4, 15): before every block what came of the
    lp + li tokens is replaced by trained activations; before the first one, embedding and position.
    |Θ| = L d (lp + li). For GPT-3 the paper prints more in all five rows of table 15.
    """

    def tokens(self, c: Any, rng: np.random.Generator, dtype: Any) -> dict[str, Module]:
        n, d = self.lp + self.li, c.d_model
        parts: dict[str, Module] = {"drop": After(n, d, rng, dtype)}  # the first block's input
        return parts | {f"blocks.{i}": Before(n, d, rng, dtype) for i in range(1, c.n_layers)}

    def count(self, config: Any) -> int:
        return config.n_layers * super().count(config)  # type: ignore[no-any-return]
