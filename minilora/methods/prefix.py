"""Tokens that are trained instead of the model (§5.1): `lp` before each prompt, `li` after it.

They are no words of the vocabulary, but they take positions and places in the cache, as words do.
For n given tokens the model computes lp + n + li, and returns the output for the given ones. In a
decoder, the token after the prompt is predicted at the last of `li`, which stands behind the
prompt. In an encoder the prompt is the sequence without its padding, and each token is read at its
own place.

The tokens start random, N(0, 0.02²), and take part from the first step on. So these methods do not
start as the base, as all others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import ops
from ..adapters import Adapter, Method, context, within
from ..backend import asarray, normal, xp
from ..checks import integer
from ..nn import Parameter
from ..tensor import Tensor
from .bottleneck import own_dtype


def prompt(tokens: int | Sequence[int]) -> AbstractContextManager[None]:
    """Inside, the first `tokens` of the model's input are the prompt: of all rows, or of each.

    with methods.prompt(5): generate(model, ids, 20)        only `li` depends on it
    """
    return within(prompt=np.asarray(tokens))


class Layout:
    """Where n given tokens and lp + li trained ones stand, in rows of lp + n + li.

    ends: (batch,), where each row's prompt ends
    places: (batch, n), where each given token stands
    which: (batch, lp + n + li), the number of the trained token at each place; -1: a given token
    """

    def __init__(self, ends: np.ndarray, n: int, lp: int, li: int) -> None:
        self.n, at, batch = n, np.arange(n)[None], len(ends)
        self.places = lp + at + li * (at >= ends[:, None])
        self.last = self.places + li * (at == ends[:, None] - 1)  # where each is read in a decoder
        self.which = np.full((batch, lp + n + li), -1)
        free = np.ones(self.which.shape, bool)
        np.put_along_axis(free, self.places, False, 1)
        self.which[free] = np.tile(np.arange(lp + li), batch)

    def spread(self, given: np.ndarray | None, other: Any) -> np.ndarray | None:
        """Ids, mask or types (batch, n) at their places; `other` where trained tokens stand."""
        if given is None:
            return None
        out = np.full(self.which.shape, other, given.dtype)
        np.put_along_axis(out, self.places, given, 1)
        return out

    def mixed(self, x: Tensor, E: Tensor) -> Tensor:
        """x (batch, n, d) at the places of the given tokens, E (lp + li, d) at the others."""
        batch, n, d = x.shape
        rows = ops.concat(x.reshape(batch * n, d), E, axis=0)
        own = np.where(self.which < 0, 0, self.which + batch * n)
        np.put_along_axis(own, self.places, np.arange(batch * n).reshape(batch, n), 1)
        out: Tensor = ops.embedding(rows, own, dtype=x.dtype)
        return out

    def put(self, x: Tensor, E: Tensor) -> Tensor:
        """x (batch, lp + n + li, d) with E at the places of the trained tokens."""
        ours = asarray((self.which >= 0)[..., None].astype(str(x.dtype)))
        rows: Tensor = ops.embedding(E, np.maximum(self.which, 0), dtype=x.dtype)
        out: Tensor = x * (1 - ours) + rows * ours
        return out

    @staticmethod
    def read(x: Tensor, places: np.ndarray) -> Tensor:
        """x (batch, lp + n + li, d) at these places: (batch, n, d)."""
        batch, n, d = x.shape
        rows = places + n * np.arange(batch)[:, None]
        return ops.embedding(x.reshape(batch * n, d), rows)


class Tokens(Adapter):
    """What both seams need: how many tokens there are, and where they stand."""

    exclusive = "each puts trained tokens beside the prompt: activate one"

    def __init__(self, called: str, lp: int, li: int, positions: int, padding: int | None) -> None:
        self.called, self.lp, self.li = called, lp, li
        self.positions = positions  # n_positions of the model
        self.padding = padding  # an encoder's id for trained tokens; None: a decoder

    def layout(self, batch: int, n: int, mask: Any) -> Layout:
        """Raises ValueError where the tokens are too many, or the prompt's end is unknown."""
        if n + self.lp + self.li > self.positions:
            raise ValueError(
                f"{self.called}: {n} tokens and {self.lp + self.li} trained ones are more than "
                f"n_positions, {self.positions}: give it {self.positions - self.lp - self.li} "
                "tokens at most"
            )
        if self.padding is None:
            ends = self.prompts(batch, n)
        else:
            ends = np.full(batch, n) if mask is None else n - np.argmax(mask[:, ::-1], 1)
        return Layout(ends, n, self.lp, self.li)

    def prompts(self, batch: int, n: int) -> np.ndarray:
        """Where each row's prompt ends, as `prompt` has said."""
        ends = context().prompt
        if not self.li:
            return np.full(batch, n)
        if ends is None:
            raise ValueError(
                f"{self.called}: li={self.li} tokens come after the prompt: say where it ends, as "
                "in with methods.prompt(tokens): model(ids)"
            )
        if ends.dtype.kind not in "iu" or ends.shape not in ((), (batch,)):
            raise ValueError(
                f"{self.called}: a prompt's length is one integer, or one for each of the {batch} "
                f"rows, not {ends.dtype} {ends.shape}"
            )
        if not (ends.min() >= 0 and ends.max() <= n):
            raise ValueError(
                f"{self.called}: prompts of {ends.min()} to {ends.max()} tokens in rows of {n}: "
                "the first call must contain them entirely"
            )
        return np.broadcast_to(ends, batch)

    def continues(self, state: Any) -> bool:
        """Does a decoder go on after tokens that are in its cache, the trained ones with them?"""
        return self.padding is None and bool(state) and state[0].n > 0


class AtEmbed(Tokens):
    """Around `embed`: E: (lp + li, d) stands among the vectors of the given tokens."""

    def __init__(self, *how: Any, d: int, rng: np.random.Generator | None, dtype: Any) -> None:
        super().__init__(*how)
        n = self.lp + self.li
        self.E = None if rng is None else Parameter(normal(rng, (n, d), 0.02, dtype))

    def forward(self, inner: Any, ids: np.ndarray, about: Any = None) -> Tensor:
        """about: a decoder's cache, an encoder's mask."""
        x: Tensor = inner(ids, about)
        if self.continues(about):
            return x
        batch, n = ids.shape
        layout = self.layout(batch, n, about)
        zeros = xp.zeros((self.lp + self.li, x.shape[2]), x.dtype)
        return layout.mixed(x, Tensor(zeros) if self.E is None else self.E)

    def window(self, positions: int, tokens: int) -> int:
        size = positions - self.lp - self.li
        if size < 1 or (self.li and tokens > size):
            raise ValueError(
                f"{self.called}: {tokens} tokens and {self.lp + self.li} trained ones are more "
                f"than n_positions, {positions}" + ", and the prompt has to stay" * bool(self.li)
            )
        return size


class AtThrough(Tokens):
    """Around `through`: the blocks see all tokens; only the given ones' outputs go on."""

    def forward(self, inner: Any, x: Tensor, *inputs: Any) -> Tensor:
        """inputs: a decoder's cache; an encoder's ids, mask and types."""
        if self.continues(inputs[0]):
            return inner(x, *inputs)  # type: ignore[no-any-return]
        mask = inputs[1] if len(inputs) > 1 else None
        layout = self.layout(x.shape[0], x.shape[1] - self.lp - self.li, mask)
        if self.padding is not None:
            others = self.padding, True, 0
            inputs = tuple(layout.spread(*pair) for pair in zip(inputs, others))
        with within(layout=layout):
            y = inner(x, *inputs)
        return layout.read(y, layout.last if self.padding is None else layout.places)


class Before(Adapter):
    """Around a block, or the dropout before the first: E replaces the trained tokens' vectors."""

    def __init__(self, n: int, d: int, rng: np.random.Generator, dtype: Any) -> None:
        self.E = Parameter(normal(rng, (n, d), 0.02, dtype))        # (lp + li, d)

    def forward(self, inner: Any, x: Tensor, *inputs: Any, **settings: Any) -> Tensor:
        layout = context().layout
        if layout is not None:
            x = layout.put(x, self.E)
            if settings.get("context") is not None:  # what DeBERTa's last block looks at again
                settings["context"] = layout.put(settings["context"], self.E)
        out: Tensor = inner(x, *inputs, **settings)
        return out


class AfterDrop(Before):
    """Around the dropout before the first block: E is put behind it."""

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        layout, y = context().layout, inner(x)
        return y if layout is None else layout.put(y, self.E)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PreEmbed(Method, called="preembed"):
    """Prefix-embedding tuning, PreEmbed (§5.1; tables 4, 15): the embeddings of lp + li tokens are
    trained. |Θ| = d (lp + li).

    lp   how many come before the prompt
    li   how many come after it; then `methods.prompt` has to say where it ends
    """

    lp: int = 8
    li: int = 0

    def __post_init__(self) -> None:
        for name in ("lp", "li"):
            self._set(**{name: integer(type(self).__name__, name, getattr(self, name))})
        if not self.lp + self.li:
            raise ValueError(f"{type(self).__name__}: lp + li must be 1 at least: give one of them")

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Adapter]:
        if not (hasattr(model, "embed") and hasattr(model, "through")):
            raise ValueError(
                f"{self.called}: this model has no seams `embed` and `through` for trained tokens: "
                "build them in, as models/gpt2.py does"
            )
        if self.lp + self.li >= (most := model.config.n_positions):
            raise ValueError(
                f"{self.called}: lp + li = {self.lp + self.li} of n_positions, {most}: take fewer: "
                "the prompt takes places, too"
            )
        padding = None
        if not hasattr(model, "new_cache"):  # an encoder: any id that is no padding
            padding = int(getattr(model.config, "padding_id", 1) == 0)
        how = self.called, self.lp, self.li, most, padding
        return {**self.tokens(model, how, rng), "through": AtThrough(*how)}

    def tokens(self, model: Any, how: Any, rng: np.random.Generator) -> dict[str, Adapter]:
        """The adapters with the tokens' vectors."""
        return {"embed": AtEmbed(*how, d=model.config.d_model, rng=rng, dtype=own_dtype(model))}

    def renamed(self, name: str) -> str:
        return "embed.E" if name == "tok.E" else name

    def count(self, config: Any) -> int:
        return config.d_model * (self.lp + self.li)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PreLayer(PreEmbed, called="prelayer"):
    """Prefix-layer tuning, PreLayer (§5.1; tables 3, 4, 15): before every block, trained vectors
    replace those of the lp + li tokens; before the first one, embedding and position.
    |Θ| = L d (lp + li). For GPT-3 the paper prints more in all five rows of table 15.
    """

    def tokens(self, model: Any, how: Any, rng: np.random.Generator) -> dict[str, Adapter]:
        c, n, dtype = model.config, self.lp + self.li, own_dtype(model)
        parts: dict[str, Adapter] = {"drop": AfterDrop(n, c.d_model, rng, dtype)}
        for i in range(1, c.n_layers):
            parts[f"blocks.{i}"] = Before(n, c.d_model, rng, dtype)
        return {**parts, "embed": AtEmbed(*how, d=c.d_model, rng=None, dtype=dtype)}

    def count(self, config: Any) -> int:
        return config.n_layers * super().count(config)  # type: ignore[no-any-return]
