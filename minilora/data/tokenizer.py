"""Text to token ids and back: a byte-level byte-pair encoding, trained on any text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import describe, integer

Pair = tuple[int, int]

# As in GPT-2: a contraction; letters, digits or signs with at most one space before them.
# Newlines are words of their own, so no token crosses a line end.
WORD = re.compile(r"'(?:s|t|d|m|re|ve|ll)\b| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\n+|[^\S\n]")

NONE = -1  # the id of an empty place: after a word, and where a token was joined to another
ROOM = 1 << 24  # largest total size of all tokens in bytes, fifty times that of GPT-2
WORDS, LETTERS = 1 << 16, 64  # of the cache: most words, most letters of a word


class BPE:
    """Byte-pair encoding over UTF-8 bytes: ids 0-255 are bytes, id 256 + i is merge i.

    A merge joins two ids into one, and never crosses a word. A space belongs to the word after
    it; newlines are words of their own; letters, digits and signs are separate words. Any text
    can be encoded. Source: Sennrich et al. 2016, algorithm 1; bytes as in GPT-2.
    """

    def __init__(self, merges: Iterable[Pair] | NDArray[np.integer]) -> None:
        """merges: pairs of ids in order, or an integer array (n, 2).

        Raises ValueError if an item is not a pair of ids, an id is not yet defined, a pair occurs
        twice, or the tokens have more than ROOM bytes in total.
        """
        self.merges: list[Pair] = []
        self._bytes: list[bytes] = [bytes([i]) for i in range(256)]
        self._ids: dict[Pair, int] = {}
        self._cache: dict[str, list[int]] = {}
        if isinstance(merges, np.ndarray):
            merges = merges.tolist()
        if not isinstance(merges, Iterable):
            raise ValueError(f"BPE: merges must be pairs of ids, not {describe(merges)}")
        room = ROOM
        for i, pair in enumerate(merges, start=256):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"BPE: token {i} must join a pair of ids, not {describe(pair)}")
            a, b = (integer("BPE", f"each id of token {i}", half, 0, i - 1) for half in pair)
            if (a, b) in self._ids:
                raise ValueError(f"BPE: tokens {self._ids[a, b]} and {i} both join ({a}, {b})")
            room -= len(self._bytes[a]) + len(self._bytes[b])
            if room < 0:
                raise ValueError(f"BPE: the tokens up to {i} have more than {ROOM} bytes in total")
            self._bytes.append(self._bytes[a] + self._bytes[b])
            self._ids[a, b] = i
            self.merges.append((a, b))

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPE:
        """Learn vocab_size - 256 merges: each time, merge the most frequent pair of ids.

        Among equally frequent pairs the one with smaller ids is merged first. The vocabulary is
        smaller than vocab_size if the text has no more pairs.
        """
        integer("BPE.train", "vocab_size", vocab_size, 256)
        words = Counter(_words(text, "BPE.train"))
        ids, weights = list[int](), list[int]()  # of all words; how often each occurs
        for word, times in words.items():
            ids += [*_utf8(word), NONE]
            weights += [times] * (len(ids) - len(weights))
        sequence = _Sequence(ids)
        total: Counter[Pair] = Counter()
        places: defaultdict[Pair, list[int]] = defaultdict(list)  # where each pair starts

        def count(at: int, sign: int) -> None:
            pair = sequence.pair(at)
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
            if -times != total[best]:  # some of its pairs were changed by other merges
                heappush(likeliest, (-total[best], best))
                continue
            changed = set[int]()
            for at in places[best]:  # in order, from left to right
                if sequence.pair(at) == best:
                    left, right = sequence.before[at], sequence.after[at]
                    for i in (left, at, right):
                        count(i, -1)
                    sequence.join(at, 256 + len(merges))
                    for i in (left, at):
                        count(i, +1)
                    changed |= {left, at}
            for pair in {sequence.pair(at) for at in changed}:
                heappush(likeliest, (-total[pair], pair))
            merges.append(best)
        return cls(merges)

    @property
    def vocab_size(self) -> int:
        """256 + the number of merges."""
        return len(self._bytes)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Return the ids of a text        (n,) int32. Short words are cached."""
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
        """Return the text of ids: decode(encode(text)) == text. Invalid UTF-8 becomes U+FFFD."""
        flat = np.ravel(ids)
        if flat.size and not np.issubdtype(flat.dtype, np.integer):
            raise TypeError(f"BPE.decode: ids must be integers, not {flat.dtype}")
        for i in flat[(flat < 0) | (flat >= self.vocab_size)].tolist():
            raise ValueError(f"BPE.decode: id {i} is outside the vocabulary of {self.vocab_size}")
        return b"".join(self._bytes[i] for i in flat.tolist()).decode("utf-8", errors="replace")

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word: its bytes, joined again and again by the earliest merge.

        The result of a merge is joined by later merges only. So one pass is enough, in the order
        of merges and from left to right: n log n for n bytes.
        """
        sequence, known = _Sequence(_utf8(word)), self._ids
        joins = [(known[pair], at) for at in range(len(sequence.ids))
                 if (pair := sequence.pair(at)) in known]
        heapify(joins)
        while joins:
            merged, at = heappop(joins)
            if sequence.pair(at) == self.merges[merged - 256]:  # else it was joined before
                sequence.join(at, merged)
                for i in (sequence.before[at], at):
                    if (pair := sequence.pair(i)) in known:
                        heappush(joins, (known[pair], i))
        return [i for i in sequence.ids if i != NONE]


class _Sequence:
    """A sequence of tokens as a linked list: joining two neighbours takes constant time."""

    def __init__(self, ids: Iterable[int]) -> None:
        """Append NONE to the ids: it is after the last id and, at index -1, before the first."""
        self.ids = [*ids, NONE]
        self.before = [*range(-1, len(self.ids) - 1)]
        self.after = [*range(1, len(self.ids)), -1]

    def pair(self, at: int) -> Pair:
        """Return the ids of the token at this place and of the next one."""
        return self.ids[at], self.ids[self.after[at]]

    def join(self, at: int, merged: int) -> None:
        """Replace the token at this place and the next one by the token `merged`."""
        removed = self.after[at]
        self.ids[at], self.ids[removed] = merged, NONE
        self.after[at] = self.after[removed]
        self.before[self.after[at]] = at


def _words(text: str, who: str) -> list[str]:
    """Return the words of a text. Raises TypeError for anything but a str."""
    if not isinstance(text, str):
        raise TypeError(f"{who}: text must be a str, not {describe(text)}")
    return WORD.findall(text)


def _utf8(word: str) -> bytes:
    """Return the UTF-8 bytes of a word. Raises ValueError for a lone surrogate."""
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(word[error.start])
        raise ValueError(f"BPE: {word!r} has a lone surrogate, U+{code:04X}: not UTF-8") from None
