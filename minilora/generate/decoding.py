"""The loop over tokens, with or without a key/value cache, and the verbs that run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..backend import Rng, asnumpy, generator
from ..backend.flags import quietly
from ..checks import integer
from ..data.padding import padded
from ..models.decoder import Decoder
from ..nn import evaluating
from ..tensor import no_grad
from ..words import our_words
from .finite import first_not_finite
from .inputs import listed, sequences, window
from .sampling import Sampling
from .text import Text, ends


@our_words
def generate(
    model: Decoder, ids: Any, n_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, repetition_penalty: float | None = None, rng: Rng = None,
    cache: bool = True, begins: Callable[[], Any] | None = None, stop: Any = None,
) -> Any:
    """Return ids followed by `n_tokens` generated ones

    ids: (tokens,) or (batch, tokens), and so is the result; or a list of (tokens,) of any lengths,
    and the result is a list. Each sequence is continued as if it were alone.

    temperature  divides the logits; 0 takes the likeliest token, so top_k and top_p are refused
    top_k        sample from the k likeliest tokens only
    top_p        sample from the fewest likeliest tokens whose probabilities sum to p or more
    repetition_penalty
                 before all this, divide a positive logit by it, and multiply a negative one, if the
                 token is in the sequence; above 1, fewer words are repeated (Keskar et al. 2019)
    rng          the first sequence draws from it, each other one from a generator that it spawns:
                 rng.spawn(batch - 1). So no sequence changes what another one draws
    cache        keep keys and values instead of computing them again: faster, the same tokens
    begins       is called before each token, to show progress
    stop         an id, a string, or several of both: a sequence is finished when it has generated
                 the id, or text with the string. The last token is the id, or the one that
                 completes the string: `stream` cuts the text. In a list, the sequence ends there;
                 in (batch, tokens) it is filled up with its last token, until all are finished

    When n_positions tokens are full, the latter half of them becomes the new context. Arguments are
    checked before the model runs: TypeError for ids that are not integers, ValueError for the rest.
    Raises FloatingPointError, with the place, if logits are not finite.
    """
    how = Sampling(temperature, top_k, top_p, repetition_penalty)
    rows, steps = begun("generate", model, ids, n_tokens, how, rng, cache, begins, stop, False)
    with no_grad(), evaluating(model):
        for _ in steps:
            pass
    if listed(ids):
        return [np.array(row.ids[: row.end or None]) for row in rows]
    return np.array([row.ids for row in rows]).reshape(*np.shape(ids)[:-1], -1)


@our_words
def stream(
    model: Decoder, ids: Any, n_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, repetition_penalty: float | None = None, rng: Rng = None,
    cache: bool = True, begins: Callable[[], Any] | None = None, stop: Any = None,
) -> Stream:
    """Return an iterator over the text that `generate` would add to ids, piece by piece

    for piece in ml.stream(model, ids, 100): print(piece, end="", flush=True)        ids: (tokens,)

    A piece is complete: no character is cut, and no later token changes it. The text ends before
    the token or the string at which it stops. Arguments and errors are those of `generate`.
    """
    how = Sampling(temperature, top_k, top_p, repetition_penalty)
    if np.ndim(ids) != 1:
        raise ValueError(f"stream: ids must be one sequence, (tokens,), not {np.shape(ids)}")
    rows, steps = begun("stream", model, ids, n_tokens, how, rng, cache, begins, stop, True)
    return Stream(model, rows[0], steps)


class Stream:
    """The pieces of a text. `ids`: the tokens so far, with those that were given.

    Between two pieces the model is as it was: the caller may stop, or train it.
    """

    def __init__(self, model: Decoder, row: Row, steps: Iterator[None]) -> None:
        self._model, self._row, self._steps = model, row, steps

    @property
    def ids(self) -> np.ndarray:
        return np.array(self._row.ids)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        while True:
            with no_grad(), evaluating(self._model):
                over = next(self._steps, self) is self
            if piece := self._row.read(over):
                return piece
            if over:
                raise StopIteration


@our_words
def answers(
    model: Decoder, prompts: Sequence[Sequence[int]], longest: int, stop: int, batch: int = 64
) -> list[list[int]]:
    """Return the likeliest continuation of each prompt, without `stop` and what follows it.

    Prompts of one length are computed together, at most `batch` of them, without padding: so each
    answer is the one that its prompt alone would get. longest: the most tokens of an answer.
    Raises as `generate` does.
    """
    integer("answers", "batch", batch, 1)
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    result: list[list[int]] = [[] for _ in prompts]
    for length, same in sorted(by_length.items()):
        for at in (same[j : j + batch] for j in range(0, len(same), batch)):
            rows = np.array([prompts[i] for i in at]).reshape(len(at), length)
            out = generate(model, rows, longest, temperature=0, stop=stop)[:, length:]
            for i, row in zip(at, out.tolist()):
                result[i] = row[: row.index(stop)] if stop in row else row
    return result


class Row:
    """One sequence: its tokens, where the context that the model reads starts, and its end."""

    def __init__(self, ids: list[int], size: int, rng: np.random.Generator) -> None:
        self.ids, self.start, self.rng = ids, max(0, len(ids) - size), rng
        self.end = 0  # how many tokens it had when it was finished; 0: it goes on
        self.text: Text | None = None
        self.piece = ""  # text that nobody has read yet

    def add(self, token: int, stops: frozenset[int]) -> None:
        """Append the next token of a row that is not finished."""
        self.ids.append(token)
        finished = token in stops
        if self.text and not finished:
            self.piece += self.text.add(token)
            finished = self.text.ended
        self.end = finished * len(self.ids)

    def read(self, over: bool) -> str:
        """Return the text since the last call, with all that waits if the row is over."""
        piece, self.piece = self.piece, ""
        return piece + self.text.rest() if over and self.text else piece


def begun(
    who: str, model: Any, ids: Any, n_tokens: int, how: Sampling, rng: Rng, cache: bool,
    begins: Callable[[], Any] | None, stop: Any, as_text: bool,
) -> tuple[list[Row], Iterator[None]]:
    """Check all arguments; return the rows, and the steps that will each append a token to them."""
    given = sequences(who, model, ids)
    integer(who, "n_tokens", n_tokens)
    how.check(who)
    stops, strings = ends(who, stop, model.config.vocab_size)
    if (as_text or strings) and getattr(model, "tokenizer", None) is None:
        remedy = f", or give ids, not stop={stop!r}" * bool(strings)
        raise ValueError(f"{who}: the model has no tokenizer: set model.tokenizer{remedy}")
    size, rng = window(model, max(map(len, given)) + n_tokens - 1), generator(rng)
    others = rng.spawn(len(given) - 1) if how.temperature and len(given) > 1 else [rng] * len(given)
    rows = [Row(row, size, own) for row, own in zip(given, [rng, *others])]
    if strings or as_text:
        for row in rows:
            row.text = Text(model.tokenizer, row.ids, strings)
    return rows, steps(who, model, rows, n_tokens, size, how, stops, cache, begins)


def steps(
    who: str, model: Any, rows: list[Row], n_tokens: int, size: int, how: Sampling,
    stops: frozenset[int], cache: bool, begins: Callable[[], Any] | None,
) -> Iterator[None]:
    """Append a token to each row at each step, until n_tokens or until all rows are finished.

    The rows are padded at the left, so that the next token of all of them is in one column.
    """
    kv: Any = None
    for _ in range(n_tokens):
        if begins:
            begins()
        full = [row for row in rows if len(row.ids) - row.start > size]
        for row in full:
            row.start = len(row.ids) - max(1, size // 2)
        if full or not kv:
            ids, mask = contexts(rows)
            kv = model.new_cache(len(rows)) if cache else None
        else:
            ids = np.array([row.ids[-1:] for row in rows])
            mask = None if mask is None else np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        about = ({"cache": kv} if cache else {}) | ({} if mask is None else {"mask": mask})
        logits = quietly(model, ids, **about)
        last = asnumpy(logits.data[:, -1]).astype(np.float64)  # (batch, vocab_size)
        if not np.isfinite(last.max(axis=1)).all():
            ids, mask = contexts(rows)
            place = first_not_finite(model, ids, *(() if mask is None else (None, mask)))
            raise FloatingPointError(
                f"{who}: the logits are not finite, starting at {place or 'the key/value cache'}: "
                "load finite weights, or compute in a wider dtype"
            )
        for row, z in zip(rows, last):
            if row.end:
                row.ids.append(row.ids[-1])
            else:
                row.add(quietly(how.choose, z, row.ids, row.rng), stops)
        yield
        if all(row.end for row in rows):
            return


def contexts(rows: list[Row]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what the model reads of each row, padded at the left, and where there are tokens
    (None: everywhere): (batch, tokens) of the longest context, twice.
    """
    ids, mask = padded([row.ids[row.start :] for row in rows], left=True)
    return ids, None if mask.all() else mask
