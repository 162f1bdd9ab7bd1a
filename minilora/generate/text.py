"""The text of tokens as they come, and the tokens and strings at which it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import integer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # for bytes that are no character, or not yet


def ends(who: str, stop: Any, vocab_size: int) -> tuple[frozenset[int], tuple[str, ...]]:
    """Return the tokens and the strings in `stop`: one of them, or a sequence of both.

    Raises ValueError for an id outside the vocabulary, and for an empty string.
    """
    one = isinstance(stop, str) or np.ndim(stop) == 0
    given = [] if stop is None else [stop] if one else [*stop]
    strings = tuple(each for each in given if isinstance(each, str))
    if "" in strings:
        raise ValueError(f"{who}: stop={stop!r} has an empty string: remove it")
    tokens = (each for each in given if not isinstance(each, str))
    return frozenset(integer(who, "stop", each, 0, vocab_size - 1) for each in tokens), strings


def before(text: str, strings: Sequence[str]) -> str:
    """Return the text before the first of these strings; all of it if it contains none."""
    return text[: min((at for each in strings if (at := text.find(each)) >= 0), default=len(text))]


class Text:
    """The text of the tokens that follow given ones, in pieces that later tokens cannot change.

    An incomplete character waits for its other bytes, and what may be the beginning of a stop
    string waits until it is clear. The text ends before the stop string.
    """

    def __init__(self, tokenizer: Any, given: Sequence[int], strings: tuple[str, ...] = ()) -> None:
        self.decode, self.strings = tokenizer.decode, strings
        self.ids = [*given]  # some last tokens: a tokenizer may write one differently at the start
        self.known = self.decode(self.ids).rstrip(UNKNOWN)  # the part of their text that was read
        self.new = 0  # how many of them are not entirely in it
        self.waiting = ""  # text that was not returned yet
        self.ended = False  # a stop string was found, or all was returned

    def add(self, token: int) -> str:
        """Read the next token; return the piece of text that is certain now, perhaps ""."""
        self.ids.append(token)
        self.new += 1
        text = self.decode(self.ids)
        certain = text.rstrip(UNKNOWN)
        whole, self.waiting = self.waiting + certain[len(self.known) :], ""
        self.known = max(self.known, certain, key=len)
        if certain == text:  # the tokens before the new ones are needed no longer
            self.ids, self.new = self.ids[-self.new :], 0
            self.known = self.decode(self.ids)
        piece = before(whole, self.strings)
        self.ended = piece != whole
        if not self.ended and (late := self.overlap(whole)):
            piece, self.waiting = whole[:-late], whole[-late:]
        return piece

    def overlap(self, text: str) -> int:
        """Return how many of the last letters may be the beginning of a stop string."""
        most = max(map(len, self.strings), default=1) - 1
        lengths = range(min(most, len(text)), 0, -1)
        return next((n for n in lengths if any(s.startswith(text[-n:]) for s in self.strings)), 0)

    def rest(self) -> str:
        """Return the text that still waits, after the last token."""
        piece = "" if self.ended else self.waiting + self.decode(self.ids)[len(self.known) :]
        self.ended = True
        return piece
