"""Text to token ids and back: a byte-level byte-pair encoding, learned from any text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import describe, whole

Pair = tuple[int, int]

# As in GPT-2: a contraction, letters, digits or signs, the last three with one space before them.
# Newlines stand alone, so that no token reaches from one line into the next.
WORD = re.compile(r"'(?:s|t|d|m|re|ve|ll)\b| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\n+|[^\S\n]")

NONE = -1  # the id where there is no token: after a word, and where one was joined to another
ROOM = 1 << 24  # the most bytes that all tokens take together, fifty times what GPT-2's take
WORDS, LETTERS = 1 << 16, 64  # remembered: at most so many words, of at most so many letters


class BPE:
    """Byte-pair encoding over UTF-8 bytes: ids 0-255 are bytes, then one id per merge, as learned.

    Merge i joins two ids into the id 256 + i. A merge never crosses a word: a space belongs to
    the word after it, newlines are words of their own, digits and signs stay apart from letters.
    Any text can be encoded. Source: Sennrich et al. 2016, algorithm 1; bytes as in GPT-2.
    """

    def __init__(self, merges: Iterable[Pair] | NDArray[np.integer]) -> None:
        """The tokenizer of these merges: pairs of ids, or an array of integers (n, 2).

        Raises ValueError for what is no pair of ids, for an id that is not yet defined there, for
        a pair that is there twice, and for tokens of more than ROOM bytes in all.
        """
        self.merges: list[Pair] = []
        self._bytes: list[bytes] = [bytes([i]) for i in range(256)]
        self._ids: dict[Pair, int] = {}
        self._cache: dict[str, list[int]] = {}
        if isinstance(merges, np.ndarray):
            merges = merges.tolist()
        if not isinstance(merges, Iterable):
            raise ValueError(f"BPE: merges are pairs of ids, not {describe(merges)}")
        room = ROOM
        for i, pair in enumerate(merges, start=256):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"BPE: token {i} joins a pair of ids, not {describe(pair)}")
            a, b = (whole("BPE", f"each id that token {i} joins", half, 0, i - 1) for half in pair)
            if (a, b) in self._ids:
                raise ValueError(f"BPE: token {i} joins ({a}, {b}), as {self._ids[a, b]} does")
            room -= len(self._bytes[a]) + len(self._bytes[b])
            if room < 0:
                raise ValueError(f"BPE: the tokens up to {i} are longer than {ROOM} bytes in all")
            self._bytes.append(self._bytes[a] + self._bytes[b])
            self._ids[a, b] = i
            self.merges.append((a, b))

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPE:
        """The BPE that merges the most frequent pair, vocab_size - 256 times over.

        Of equally frequent pairs the smaller one (by ids) is merged first. A text that runs out
        of pairs gives fewer tokens than vocab_size.
        """
        whole("BPE.train", "vocab_size", vocab_size, 256)
        words = Counter(_words(text, "BPE.train"))
        ids, weights = list[int](), list[int]()  # all words in a row, and how often each occurs
        for word, times in words.items():
            ids += [*_utf8(word), NONE]
            weights += [times] * (len(ids) - len(weights))
        row = _Row(ids)
        total: Counter[Pair] = Counter()
        places: defaultdict[Pair, list[int]] = defaultdict(list)  # where each pair began

        def count(at: int, sign: int) -> None:
            pair = row.pair(at)
            total[pair] += sign * weights[at]
            if sign > 0:
                places[pair].append(at)

        for at in range(len(ids)):
            count(at, +1)
        likeliest = [(-times, pair) for pair, times in total.items()]
        heapify(likeliest)
        merges: list[Pair] = []
        while likeliest and len(merges) < vocab_size - 256:
            times, best = heappop(likeliest)
            if NONE in best or not total[best]:
                continue
            if -times != total[best]:  # some have been taken apart since
                heappush(likeliest, (-total[best], best))
                continue
            changed = set[int]()
            for at in places[best]:  # from left to right, as all places are found
                if row.pair(at) == best:
                    left, right = row.before[at], row.after[at]
                    for i in (left, at, right):
                        count(i, -1)
                    row.join(at, 256 + len(merges))
                    for i in (left, at):
                        count(i, +1)
                    changed |= {left, at}
            for pair in {row.pair(at) for at in changed}:
                heappush(likeliest, (-total[pair], pair))
            merges.append(best)
        return cls(merges)

    @property
    def vocab_size(self) -> int:
        """256 + the number of merges."""
        return len(self._bytes)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of text        (n,) int32. Short words met before come from a cache."""
        ids: list[int] = []
        for word in _words(text, "BPE.encode"):
            known = self._cache.get(word)
            if known is None:
                known = self._encode_word(word)
                if len(word) <= LETTERS:
                    if len(self._cache) >= WORDS:
                        self._cache.clear()
                    self._cache[word] = known
            ids += known
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids: decode(encode(text)) == text. Bytes that are not UTF-8 become U+FFFD."""
        flat = np.ravel(ids)
        if flat.size and not np.issubdtype(flat.dtype, np.integer):
            raise TypeError(f"BPE.decode: ids are integers, got {flat.dtype}")
        for i in flat[(flat < 0) | (flat >= self.vocab_size)].tolist():
            raise ValueError(f"BPE.decode: id {i} is outside the vocabulary of {self.vocab_size}")
        return b"".join(self._bytes[i] for i in flat.tolist()).decode("utf-8", errors="replace")

    def _encode_word(self, word: str) -> list[int]:
        """The ids of one word: its bytes, joined by the earliest learned merge, again and again.

        What a merge makes is joined by later merges only, so one pass in the order of merges and,
        for each, from left to right, does it: n log n for n bytes.
        """
        row, known = _Row(_utf8(word)), self._ids
        joins = [(known[pair], at) for at in range(len(row.ids)) if (pair := row.pair(at)) in known]
        heapify(joins)
        while joins:
            merged, at = heappop(joins)
            if row.pair(at) == self.merges[merged - 256]:  # else it was joined with another
                row.join(at, merged)
                for i in (row.before[at], at):
                    if (pair := row.pair(i)) in known:
                        heappush(joins, (known[pair], i))
        return [i for i in row.ids if i != NONE]


class _Row:
    """Tokens in a row, as a linked list: two neighbours are joined in the same time in any row."""

    def __init__(self, ids: Iterable[int]) -> None:
        """A NONE is put behind the ids: at place -1, it also stands before the first."""
        self.ids = [*ids, NONE]
        self.before = [*range(-1, len(self.ids) - 1)]
        self.after = [*range(1, len(self.ids)), -1]

    def pair(self, at: int) -> Pair:
        """The ids of the token at this place and of the one after it."""
        return self.ids[at], self.ids[self.after[at]]

    def join(self, at: int, merged: int) -> None:
        """Make one token of the token at this place and the one after it."""
        gone = self.after[at]
        self.ids[at], self.ids[gone] = merged, NONE
        self.after[at] = self.after[gone]
        self.before[self.after[at]] = at


def _words(text: str, who: str) -> list[str]:
    """The words of a text; TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError(f"{who}: takes a text, not {describe(text)}")
    return WORD.findall(text)


def _utf8(word: str) -> bytes:
    """The UTF-8 bytes of word. Raises a ValueError that names a lone surrogate."""
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(word[error.start])
        raise ValueError(f"BPE: {word!r} holds a lone surrogate, U+{code:04X}: no UTF-8") from None
