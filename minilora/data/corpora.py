"""The built-in texts, and batches of windows from a stream of token ids."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import describe, integer, real
from ..words import our_words

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

TEXTS: dict[str, str] = {
    "plays": "the plays of William Shakespeare, in modern spelling: speakers, lines, directions",
    "kjv": "Genesis and Exodus in the King James Version (1611): flowing prose, chapter by chapter",
    "devil": "The Devil's Dictionary by Ambrose Bierce (1911): satirical definitions and verse",
}
_FILES = {"plays": "plays.txt.gz", "kjv": "kjv.txt", "devil": "devil.txt"}


@our_words
def load_text(name: str) -> str:
    """Return the built-in text of this name (see TEXTS). Raises ValueError for an unknown name."""
    if name not in TEXTS:
        raise ValueError(f"load_text: unknown text {name!r}: choose {', '.join(TEXTS)}")
    import gzip
    from importlib.resources import files

    raw = files(__package__).joinpath("texts", _FILES[name]).read_bytes()
    return (gzip.decompress(raw) if _FILES[name].endswith(".gz") else raw).decode("utf-8")


@our_words
def split(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """Return (first part, held-out last part) of a text, cut after a newline if possible.

    The held-out part is at least the fraction `held_out` of the text. Raises ValueError for a
    text shorter than two characters, or a fraction outside (0, 1).
    """
    real("split", "held_out", held_out, "(0, 1)")
    if not isinstance(text, str):
        raise TypeError(f"split: text must be a str, not {describe(text)}")
    if len(text) < 2:
        raise ValueError(f"split: a text of {len(text)} characters is too short: give at least 2")
    at = min(max(int(len(text) * (1 - held_out)), 1), len(text) - 1)
    newline = text.rfind("\n", 0, at)
    at = newline + 1 if newline >= 0 else at
    return text[:at], text[at:]


class Windows:
    """windows[i] is batch i of random windows: (inputs, targets), the targets one token later.

    ids: (n,) integers, n > tokens        inputs, targets: (batch, tokens) int64
    Batch i depends only on the seed and i, so an interrupted run can continue at any step with
    the same batches. There is no last batch, so there is no length.
    """

    @our_words
    def __init__(self, ids: ArrayLike, batch: int, tokens: int, seed: int = 0) -> None:
        """Use ids without a copy. Raises ValueError if no window fits."""
        self.ids = _stream(ids, batch, tokens, "Windows")
        self.batch, self.tokens = batch, tokens
        self.seed = integer("Windows", "seed", seed)

    def __getitem__(self, i: int) -> Batch:
        """Return batch i >= 0; default_rng([seed, i]) draws the starts of its windows."""
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"Windows: the index of a batch must be an integer, not {type(i).__name__}; "
                "for several batches, write [windows[i] for i in range(n)]"
            ) from None
        if i < 0:
            raise IndexError(f"Windows: index {i} is negative, and there is no last batch")
        starts = np.random.default_rng([self.seed, i]).integers(
            0, len(self.ids) - self.tokens, size=self.batch
        )
        return _windows(self.ids, starts, self.tokens)


@our_words
def sequential(ids: ArrayLike, batch: int, tokens: int) -> list[Batch]:
    """Return all full windows in order, for evaluation: every target is predicted exactly once.

    Window k predicts ids[k * tokens + 1 : (k + 1) * tokens + 1]. The last batch may have fewer
    sequences; targets after the last full window are dropped.
    """
    stream = _stream(ids, batch, tokens, "sequential")
    starts = np.arange(0, len(stream) - tokens, tokens)
    return [_windows(stream, starts[i : i + batch], tokens) for i in range(0, len(starts), batch)]


@our_words
def unigram_loss(ids: ArrayLike, batches: Sequence[Batch], vocab_size: int) -> float:
    """Return the mean loss, in nats, of predicting each target by its frequency in `ids` alone.

    p(token) = (1 + its number in ids) / (vocab_size + len(ids)), so no token is impossible. A model
    that has learned a text beats this number: give the part to train on and held-out batches.
    """
    counts = 1 + np.bincount(np.asarray(ids), minlength=vocab_size)
    targets = np.concatenate([np.ravel(targets) for _, targets in batches])
    return float(-np.log(counts / counts.sum())[targets[targets >= 0]].mean())


def _windows(ids: NDArray[np.integer], starts: NDArray[np.integer], tokens: int) -> Batch:
    """Return (ids[start : start + tokens] for each start, the same one token later)."""
    places = starts[:, None] + np.arange(tokens + 1)  # (batch, tokens + 1)
    windows = ids[places].astype(np.int64)
    return windows[:, :-1], windows[:, 1:]


def _stream(ids: ArrayLike, batch: int, tokens: int, who: str) -> NDArray[np.integer]:
    """Return ids as an array. Raises ValueError if it has no window of tokens + 1 integers."""
    integer(who, "batch", batch, 1)
    integer(who, "tokens", tokens, 1)
    stream = np.asarray(ids)
    if stream.ndim != 1 or (stream.size and not np.issubdtype(stream.dtype, np.integer)):
        raise ValueError(
            f"{who}: ids must be integers (n,), as tokenizer.encode(text) returns them, "
            f"not {describe(ids) if isinstance(ids, str) else f'{stream.dtype} {stream.shape}'}"
        )
    if len(stream) <= tokens:
        fewer = f" or at most {len(stream) - 1} tokens" if len(stream) > 1 else ""
        raise ValueError(
            f"{who}: {len(stream)} ids are too few for a window of {tokens} tokens and their "
            f"targets, which needs {tokens + 1}: use a longer text{fewer}"
        )
    return stream
