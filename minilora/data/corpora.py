"""The built-in texts, and how a stream of tokens becomes batches."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import describe, real, whole

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]

TEXTS: dict[str, str] = {
    "plays": "the plays of William Shakespeare, in modern spelling: speakers, lines, directions",
    "kjv": "Genesis and Exodus in the King James Version (1611): flowing prose, chapter by chapter",
    "devil": "The Devil's Dictionary by Ambrose Bierce (1911): satirical definitions and verse",
}
_FILES = {"plays": "plays.txt.gz", "kjv": "kjv.txt", "devil": "devil.txt"}


def load_text(name: str) -> str:
    """The built-in text of this name (see TEXTS). Raises a ValueError that lists the names."""
    if name not in TEXTS:
        raise ValueError(f"load_text: there is no text {name!r}; there are {', '.join(TEXTS)}")
    import gzip
    from importlib.resources import files

    raw = files(__package__).joinpath("texts", _FILES[name]).read_bytes()
    return (gzip.decompress(raw) if _FILES[name].endswith(".gz") else raw).decode("utf-8")


def split(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """(first part, held-out last part): together the text, cut after a newline where there is one.

    The cut is the last newline that leaves at least the fraction held_out, or, in a text without
    such a newline, the character at that place. Raises a ValueError on a text too short to cut
    and on a fraction outside (0, 1).
    """
    real("split", "held_out", held_out, "(0, 1)")
    if not isinstance(text, str):
        raise TypeError(f"split: takes a text, not {describe(text)}")
    if len(text) < 2:
        raise ValueError(f"split: a text of {len(text)} characters cannot be cut in two")
    at = min(max(int(len(text) * (1 - held_out)), 1), len(text) - 1)
    newline = text.rfind("\n", 0, at)
    at = newline + 1 if newline >= 0 else at
    return text[:at], text[at:]


class Windows:
    """windows[i] is batch i of random windows: inputs and targets, the targets one token later.

    Batch i depends on the seed and on i alone, so a run that was interrupted goes on at any step
    with the batches that it would have seen. There is no last batch and hence no length.
    ids: (n,) integers with n > tokens        a batch: two arrays of (batch, tokens) int64
    """

    def __init__(self, ids: ArrayLike, batch: int, tokens: int, seed: int = 0) -> None:
        """The windows of ids, which are kept by reference. Raises where none fits."""
        self.ids = _stream(ids, batch, tokens, "Windows")
        self.batch, self.tokens = batch, tokens
        self.seed = whole("Windows", "seed", seed)

    def __getitem__(self, i: int) -> Batch:
        """Batch i >= 0, the same one each time: default_rng([seed, i]) draws its starts."""
        try:
            i = operator.index(i)
        except TypeError:
            raise TypeError(
                f"Windows: a batch is asked for by its number, not by {type(i).__name__}; "
                "for several, write [windows[i] for i in range(n)]"
            ) from None
        if i < 0:
            raise IndexError(f"Windows: no batch {i}; there is no last batch to count back from")
        starts = np.random.default_rng([self.seed, i]).integers(
            0, len(self.ids) - self.tokens, size=self.batch
        )
        return _windows(self.ids, starts, self.tokens)


def sequential(ids: ArrayLike, batch: int, tokens: int) -> list[Batch]:
    """Each full window once, in order, for evaluation: every target is predicted exactly once.

    Window k predicts ids[k * tokens + 1 : (k + 1) * tokens + 1]. The last batch may have fewer
    rows; targets at the end that fill no window are left out.
    """
    stream = _stream(ids, batch, tokens, "sequential")
    starts = np.arange(0, len(stream) - tokens, tokens)
    return [_windows(stream, starts[i : i + batch], tokens) for i in range(0, len(starts), batch)]


def _windows(ids: NDArray[np.integer], starts: NDArray[np.integer], tokens: int) -> Batch:
    """Inputs ids[start : start + tokens] of each start, and the targets one token later."""
    places = starts[:, None] + np.arange(tokens + 1)  # (batch, tokens + 1)
    drawn = ids[places].astype(np.int64)
    return drawn[:, :-1], drawn[:, 1:]


def _stream(ids: ArrayLike, batch: int, tokens: int, who: str) -> NDArray[np.integer]:
    """ids as an array, once it is certain that a window of tokens + 1 fits into it."""
    whole(who, "batch", batch, 1)
    whole(who, "tokens", tokens, 1)
    stream = np.asarray(ids)
    if stream.ndim != 1 or (stream.size and not np.issubdtype(stream.dtype, np.integer)):
        raise ValueError(
            f"{who}: ids are one stream of integers (n,), as tokenizer.encode(text) gives them, "
            f"not {describe(ids) if isinstance(ids, str) else f'{stream.dtype} {stream.shape}'}"
        )
    if len(stream) <= tokens:
        fewer = f" or at most {len(stream) - 1} tokens" if len(stream) > 1 else ""
        raise ValueError(
            f"{who}: {len(stream)} ids hold no window of {tokens} tokens and their targets, which "
            f"takes {tokens + 1}: use a longer text{fewer}"
        )
    return stream
