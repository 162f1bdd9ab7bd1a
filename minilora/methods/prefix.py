"""Trained tokens instead of a trained model (§5.1): `lp` before each prompt, `li` after it.

The tokens are vectors, not words of the vocabulary. Like words, they take positions and places in
the cache. For n given tokens the model computes lp + n + li, and returns n outputs. In a decoder
the prompt's last output is read at the last of the `li` tokens, which predict the next word. In an
encoder the prompt is the sequence without its padding, and each output is read at its own token.

The vectors start random, N(0, 0.02²), and take part from the first step. So these methods do not
start as the base, as all others do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import Adapter, Method, context, within
from ..adapters.places import bare
from ..backend import normal, xp
from ..checks import integer
from ..models.transformer import Seam
from ..nn import Parameter
from ..tensor import Tensor
from .bottleneck import own_dtype
from .layout import Layout


def prompt(tokens: int | Sequence[int]) -> AbstractContextManager[None]:
    """Set the length of the prompt in the block: one integer for all rows, or one for each row.

    with methods.prompt(5): generate(model, ids, 20)        only `li` depends on it
    """
    return within(prompt=np.asarray(tokens))


class TokenAdapter(Adapter):
    """An adapter that finds the layout of its input."""

    exclusive = "each puts trained tokens beside the prompt: activate one"

    def __init__(self, method: PreEmbed, model: Any) -> None:
        self.called, self.lp, self.li = method.called, method.lp, method.li
        self.total, self.positions = method.lp + method.li, model.config.n_positions
        self.decoder = hasattr(model, "new_cache")
        self.filler = int(getattr(model.config, "padding_id", 1) == 0)  # an id that is not padding

    def layout(self, batch: int, n: int, cache: Any, mask: Any) -> Layout | None:
        """Return the layout of `batch` rows of n tokens; None if they continue a decoder's cache.

        mask: (batch, n), or None. Raises ValueError if the tokens are too many, or the prompt's
        length is missing or does not fit.
        """
        if cache and cache[0].n:  # the cache contains the trained tokens
            return None
        if n + self.total > self.positions:
            raise ValueError(
                f"{self.called}: {n} tokens and {self.total} trained ones exceed n_positions, "
                f"{self.positions}: give it {self.positions - self.total} tokens at most"
            )
        ends = np.full(batch, n)
        if self.decoder and self.li:
            padding = np.zeros(batch, int) if mask is None else n - np.sum(mask, 1)
            ends = padding + self.prompt_lengths(batch, n - padding)
        elif not self.decoder and mask is not None:
            ends = n - np.argmax(mask[:, ::-1], 1)
        return Layout(ends, n, self.lp, self.li)

    def given(self, *about: Any) -> tuple[Any, Any]:
        """Return (cache, mask) of what a model hands on: a decoder both, an encoder its mask."""
        return (*about, None, None)[:2] if self.decoder else (None, *about)

    def prompt_lengths(self, batch: int, n: np.ndarray) -> np.ndarray:
        """Return the lengths that `prompt` set, (batch,), checked. n: (batch,), the most."""
        ends = context().prompt
        if ends is None:
            raise ValueError(
                f"{self.called}: li={self.li} tokens come after the prompt: give its length, as "
                "in with methods.prompt(tokens): model(ids)"
            )
        if ends.dtype.kind not in "iu" or ends.shape not in ((), (batch,)):
            raise ValueError(
                f"{self.called}: a prompt's length is one integer, or one for each of the {batch} "
                f"rows, not {ends.dtype} {ends.shape}"
            )
        if not (ends.min() >= 0 and (ends <= n).all()):
            raise ValueError(
                f"{self.called}: prompts of {ends.min()} to {ends.max()} tokens in rows of "
                f"{n.min()}: "
                "the first call must contain them entirely"
            )
        return np.broadcast_to(ends, batch)


class InsertTokens(TokenAdapter):
    """Around `embed`: insert E (lp + li, d), or zeros without a `start`, among the given tokens."""

    def __init__(self, method: PreEmbed, model: Any, start: Parameter | None = None) -> None:
        super().__init__(method, model)
        self.E = start

    def forward(self, inner: Any, ids: np.ndarray, *about: Any) -> Tensor:
        """about: a decoder's cache and mask, or an encoder's mask."""
        x: Tensor = inner(ids, *about)
        layout = self.layout(ids.shape[0], ids.shape[1], *self.given(*about))
        if layout is None:
            return x
        E = Tensor(xp.zeros((self.total, x.shape[2]), dtype=x.dtype)) if self.E is None else self.E
        return layout.insert(x, E)

    def window(self, positions: int, tokens: int) -> int:
        size = positions - self.total
        if size < 1 or (self.li and tokens > size):
            raise ValueError(
                f"{self.called}: {tokens} tokens and {self.total} trained ones exceed n_positions, "
                f"{positions}" + ", and the prompt has to stay" * bool(self.li)
            )
        return size


class RunWithTokens(TokenAdapter):
    """Around `through`: run the blocks on all tokens, and return the outputs of the given ones."""

    def forward(self, inner: Any, x: Tensor, *inputs: Any) -> Tensor:
        """inputs: a decoder's cache and mask, or an encoder's ids, mask and types."""
        cache, mask = self.given(*(inputs if self.decoder else inputs[1:2]))
        layout = self.layout(x.shape[0], x.shape[1] - self.total, cache, mask)
        if self.decoder and mask is not None:
            inputs = cache, self.with_trained(mask)
        if layout is None:
            return inner(x, *inputs)  # type: ignore[no-any-return]
        if not self.decoder:
            inputs = tuple(map(layout.spread, inputs, (self.filler, True, 0)))
        with within(layout=layout):
            y = inner(x, *inputs)
        return layout.read(y, layout.last if self.decoder else layout.places)


    def with_trained(self, mask: Any) -> np.ndarray:
        """Return a decoder's mask (batch, n) with trained tokens, (batch, lp + n + li).

        At the left of the padding or among the tokens, they are not padding, wherever they are.
        """
        if (np.diff(np.asarray(mask, int), axis=1) < 0).any():
            raise ValueError(f"{self.called}: mask has padding after a token: put it at the left")
        return np.pad(mask, ((0, 0), (self.lp, self.li)), constant_values=1)


class ReplaceBefore(Adapter):
    """Around a block: E (lp + li, d) replaces the trained tokens' vectors in its input."""

    def __init__(self, start: Parameter) -> None:
        self.E = start

    def forward(self, inner: Any, x: Tensor, *inputs: Any, **settings: Any) -> Tensor:
        if (layout := context().layout) is not None:
            x = layout.replace(x, self.E)
            if settings.get("context") is not None:  # keys and values of DeBERTa's last block
                settings["context"] = layout.replace(settings["context"], self.E)
        return inner(x, *inputs, **settings)  # type: ignore[no-any-return]


class ReplaceAfter(ReplaceBefore):
    """Around the dropout before the first block: E replaces them in its output."""

    def forward(self, inner: Any, x: Tensor) -> Tensor:
        layout, y = context().layout, inner(x)
        return y if layout is None else layout.replace(y, self.E)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PreEmbed(Method, called="preembed"):
    """Prefix-embedding tuning, PreEmbed (§5.1; tables 4, 15): train the embeddings of lp + li
    tokens. |Θ| = d (lp + li).

    lp          tokens before the prompt
    li          tokens after the prompt; then `methods.prompt` has to set its length
    trainable   patterns of other parameters to train in full, such as a task's head
    """

    lp: int = 8
    li: int = 0
    trainable: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lp", "li"):
            self._set(**{name: integer(type(self).__name__, name, getattr(self, name))})
        if not self.lp + self.li:
            raise ValueError(f"{type(self).__name__}: lp + li must be 1 at least: give one of them")

    def around(self, model: Any, rng: np.random.Generator) -> Mapping[str, Adapter]:
        seams = (bare(getattr(model, name, None)) for name in ("embed", "through"))  # type: ignore
        if not all(isinstance(seam, Seam) for seam in seams):
            raise ValueError(
                f"{self.called}: this model has no seams `embed` and `through` to put trained "
                "tokens in: add them as models/gpt2.py does"
            )
        if self.lp + self.li >= (most := model.config.n_positions):
            raise ValueError(
                f"{self.called}: lp + li = {self.lp + self.li} leaves no place for a prompt: "
                f"n_positions is {most}: take fewer"
            )
        return {**self.tokens(model, rng), "through": RunWithTokens(self, model)}

    def tokens(self, model: Any, rng: np.random.Generator) -> dict[str, Adapter]:
        """The adapters with the tokens' vectors, by path."""
        return {"embed": InsertTokens(self, model, self.start(model, rng))}

    def start(self, model: Any, rng: np.random.Generator) -> Parameter:
        """Draw the vectors at the start, (lp + li, d)."""
        shape = self.lp + self.li, model.config.d_model
        return Parameter(normal(rng, shape, 0.02, own_dtype(model)))

    def renamed(self, name: str) -> str:
        return "embed.E" if name == "tok.E" else name

    def count(self, config: Any) -> int:
        return config.d_model * (self.lp + self.li)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class PreLayer(PreEmbed, called="prelayer"):
    """Prefix-layer tuning, PreLayer (§5.1; tables 3, 4, 15): before every block, trained vectors
    replace those of the lp + li tokens; before the first block, embedding and position.
    |Θ| = L d (lp + li). For GPT-3 the paper prints more in all five rows of table 15.
    """

    def tokens(self, model: Any, rng: np.random.Generator) -> dict[str, Adapter]:
        parts: dict[str, Adapter] = {"drop": ReplaceAfter(self.start(model, rng))}
        for i in range(1, model.config.n_layers):
            parts[f"blocks.{i}"] = ReplaceBefore(self.start(model, rng))
        return {**parts, "embed": InsertTokens(self, model)}

    def count(self, config: Any) -> int:
        return config.n_layers * super().count(config)  # type: ignore[no-any-return]
