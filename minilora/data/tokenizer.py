"""Text to token ids and back: a byte-level byte-pair encoding, learned from any text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Pair = tuple[int, int]

# As in GPT-2: a contraction, letters, digits or signs, the last three with one space before them.
# Newlines stand alone, so that no token reaches from one line into the next.
WORD = re.compile(r"'(?:s|t|d|m|re|ve|ll)\b| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\n+|[^\S\n]")


class BPE:
    """Byte-pair encoding over UTF-8 bytes: ids 0-255 are bytes, then one id per merge, as learned.

    Merge i joins two ids into the id 256 + i. A merge never crosses a word: a space belongs to
    the word after it, newlines are words of their own, digits and signs stay apart from letters.
    Any text can be encoded. Source: Sennrich et al. 2016, algorithm 1; bytes as in GPT-2.
    """

    def __init__(self, merges: Iterable[Pair]) -> None:
        """The tokenizer of these merges. Raises where a merge joins an id not yet defined."""
        self.merges: list[Pair] = [(int(a), int(b)) for a, b in merges]
        self._bytes: list[bytes] = [bytes([i]) for i in range(256)]
        for i, (a, b) in enumerate(self.merges, start=256):
            if not (0 <= a < i and 0 <= b < i):
                raise ValueError(f"BPE: token {i} joins ({a}, {b}), one not defined before it")
            self._bytes.append(self._bytes[a] + self._bytes[b])
        self._ids: dict[Pair, int] = {pair: 256 + i for i, pair in enumerate(self.merges)}
        self._cache: dict[str, list[int]] = {}

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPE:
        """The BPE that merges the most frequent pair, vocab_size - 256 times over.

        Of equally frequent pairs the smaller one (by ids) is merged first. A text that runs out
        of pairs gives fewer tokens than vocab_size.
        """
        if vocab_size < 256:
            raise ValueError(f"BPE.train: vocab_size is {vocab_size}; the bytes alone take 256")
        counts = Counter(WORD.findall(text))
        words, weights = [list(_utf8(word)) for word in counts], list(counts.values())
        total: Counter[Pair] = Counter()
        holders: defaultdict[Pair, set[int]] = defaultdict(set)  # pair -> words it was seen in

        def count(i: int, sign: int) -> None:
            for pair in pairwise(words[i]):
                total[pair] += sign * weights[i]
                holders[pair].add(i)

        for i in range(len(words)):
            count(i, +1)
        merges: list[Pair] = []
        while len(merges) < vocab_size - 256:
            best = min(total, key=lambda pair: (-total[pair], pair), default=(0, 0))
            if not total[best]:
                break
            for i in holders[best].copy():
                count(i, -1)
                words[i] = _join(words[i], best, 256 + len(merges))
                count(i, +1)
            del total[best], holders[best]
            merges.append(best)
        return cls(merges)

    @property
    def vocab_size(self) -> int:
        """256 + the number of merges."""
        return len(self._bytes)

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of text        (n,) int32. Words met before come from a cache."""
        ids: list[int] = []
        for word in WORD.findall(text):
            if word not in self._cache:
                self._cache[word] = self._encode_word(word)
            ids += self._cache[word]
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
        """The ids of one word: its bytes, joined by the earliest learned merge, again and again."""
        ids = list(_utf8(word))
        while found := [self._ids[pair] for pair in pairwise(ids) if pair in self._ids]:
            ids = _join(ids, self.merges[min(found) - 256], min(found))
        return ids


def _join(ids: list[int], pair: Pair, merged: int) -> list[int]:
    """ids with each occurrence of pair, from left to right, replaced by merged."""
    out: list[int] = []
    for i in ids:
        if out and (out[-1], i) == pair:
            out[-1] = merged
        else:
            out.append(i)
    return out


def _utf8(word: str) -> bytes:
    """The UTF-8 bytes of word. Raises a ValueError that names a lone surrogate."""
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(word[error.start])
        raise ValueError(f"BPE: {word!r} holds a lone surrogate, U+{code:04X}: no UTF-8") from None
