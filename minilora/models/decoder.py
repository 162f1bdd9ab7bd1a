"""The shared parts of decoders: ids to vectors, the stack of blocks, scores, and the cache."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..tensor import Tensor
from .cache import Cache, positions
from .recompute import recomputed
from .transformer import Transformer


class Decoder(Transformer):
    """ids (batch, tokens) -> logits (batch, tokens, vocab_size). A family sets the parts below."""
    config: Any
    recompute: bool
    tokenizer: Any
    tok: Any
    ln_f: Any
    blocks: Sequence[Any]
    drop: Any
    embed: Any
    through: Any

    def forward(self, ids: Any, cache: Sequence[Cache] | None = None, mask: Any = None) -> Tensor:
        """With a `cache` (see `new_cache`), ids continue the tokens in it.
        mask: (batch, tokens in the cache and ids), on the host, False for padding; None: all True.
        """
        ids = np.asarray(ids)
        start, most = cache[0].n if cache else 0, self.config.n_positions
        if ids.dtype.kind not in "iu" or ids.ndim != 2 or not 0 < start + ids.shape[1] <= most:
            long = ids.ndim == 2 and start + ids.shape[1] > most
            raise ValueError(
                f"{type(self).__name__}: ids must be integers (batch, tokens), 1 to {most} tokens, "
                f"not {ids.dtype} {ids.shape}" + (f" after {start}" if start else "") + (
                    f": cut each text, as ids[:, :{most}]" + ", and start a new cache" * bool(start)
                    if long else ": encode a text as model.tokenizer.encode(text)[None]"))
        embed, through = self.embed.around(self.vectors), self.through.around(self.stack)
        x = through(embed(ids, cache, mask), cache, mask)           # (batch, tokens, d_model)
        return self.scores(self.ln_f(x))                            # (batch, tokens, vocab_size)

    def vectors(self, ids: np.ndarray, cache: Any = None, mask: Any = None) -> Tensor:
        """Return the tokens' rows of the table."""
        return self.tok(ids)  # type: ignore[no-any-return]

    def stack(self, x: Tensor, cache: Sequence[Cache] | None = None, mask: Any = None) -> Tensor:
        """Add positions to the tokens' vectors, and run all blocks."""
        x = self.drop(self.placed(x, positions(x, cache, mask)))    # (batch, tokens, d_model)
        caches: Sequence[Any] = cache or [None] * len(self.blocks)
        for block, own in zip(self.blocks, caches, strict=True):
            again = self.recompute and not cache
            x = recomputed(block, x, mask=mask) if again else block(x, own, mask)
        return x

    def placed(self, x: Tensor, at: Any) -> Tensor:
        """Return x with these positions added; here, x as it is."""
        return x

    def scores(self, x: Tensor) -> Tensor:
        """Return a score for each word: here, of the tied head."""
        return self.tok.project(x)  # type: ignore[no-any-return]

    def new_cache(self, batch: int) -> list[Cache]:
        """Return an empty key/value cache for each block."""
        c, dtype = self.config, self.ln_f.g.dtype
        return [Cache(batch, c.n_positions, c.kv_width, dtype) for _ in range(c.n_layers)]
