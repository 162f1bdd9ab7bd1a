"""Text to token ids and back: a byte-level byte-pair encoding, trained here or read from a file."""

from __future__ import annotations

import codecs
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from reprlib import repr as short
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checks import choice, describe, integer
from ...words import our_words
from .merging import NONE, Pair, joined, learned
from .patterns import PATTERNS, compiled
from .special import Added, Template, Tokenizer, checked

ROOM = 1 << 24  # largest total size of all tokens in bytes, fifty times that of GPT-2

# GPT-2 writes each byte as a letter that can be seen: most printable bytes as themselves, the
# others as the letters from U+0100 on, in order.
_SEEN = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
_HIDDEN = [b for b in range(256) if b not in _SEEN]
LETTER = [chr(b if b in _SEEN else 256 + _HIDDEN.index(b)) for b in range(256)]  # of each byte
BYTE = {letter: b for b, letter in enumerate(LETTER)}


class BPE(Tokenizer):
    """Byte-pair encoding over UTF-8 bytes: ids 0-255 are bytes, id 256 + i is merge i.

    A merge joins two ids into one, and never crosses a word. A space belongs to the word after
    it; newlines are words of their own; letters, digits and signs are separate words. Any text
    can be encoded, and `decode` gives it back; invalid UTF-8 becomes U+FFFD.
    The vocabulary of another model has its own ids and its own pattern of words: `from_lists`.
    Source: Sennrich et al. 2016, algorithm 1; bytes as in GPT-2.
    """

    @our_words
    def __init__(
        self, merges: Iterable[Pair] | NDArray[np.integer], *,
        tokens: Sequence[bytes] | None = None, pattern: str = "minilora",
        added: Mapping[str, Added] = {}, template: Template = Template(),  # noqa: B008
        roles: Mapping[str, int] = {}, nfc: bool = False, whole_words: bool = False,
    ) -> None:
        """merges: pairs of ids in order, or an integer array (n, 2).

        tokens: the bytes of each id; None: a merge makes the next one. pattern: one of PATTERNS.
        added, template, roles: as in `Tokenizer`. nfc: a text is first composed (Unicode's NFC).
        whole_words: a word that is a token is not split, whatever the merges (as in Llama 3).
        Raises ValueError if an item is not a pair of ids, an id is not yet defined, a pair occurs
        twice, it joins to no token, or the tokens have more than ROOM bytes in total.
        """
        choice("BPE", "pattern", pattern, list(PATTERNS))
        self.pattern, self.nfc, self.whole_words = pattern, nfc, whole_words
        self.tokens: list[bytes] = [bytes([i]) for i in range(256)]
        if tokens is not None:
            self.tokens = list(tokens)
        super().__init__(added, template, roles)
        self._ids = self._by_bytes() if tokens is not None else {}
        self._byte_ids = [*range(256)]
        if tokens is not None:
            self._byte_ids = [self._ids.get(bytes([b]), NONE) for b in range(256)]
        elif whole_words:
            raise ValueError("BPE: whole_words=True needs tokens: give them, or leave it out")
        self.merges: list[Pair] = []
        self._ranks: dict[Pair, int] = {}
        self._made: list[int] = []
        if isinstance(merges, np.ndarray):
            merges = merges.tolist()
        if not isinstance(merges, Iterable):
            raise ValueError(f"BPE: merges must be pairs of ids, not {describe(merges)}")
        room, (kind, first) = ROOM, ("token", 256) if tokens is None else ("merge", 0)
        for i, pair in enumerate(merges, start=first):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise ValueError(f"BPE: {kind} {i} must join a pair of ids, not {describe(pair)}")
            last = len(self.tokens) - 1
            a, b = (integer("BPE", f"each id of {kind} {i}", half, 0, last) for half in pair)
            if (a, b) in self._ranks:
                raise ValueError(
                    f"BPE: {kind}s {first + self._ranks[a, b]} and {i} both join ({a}, {b})")
            room -= len(self.tokens[a]) + len(self.tokens[b])
            if room < 0:
                raise ValueError(f"BPE: the {kind}s up to {i} have more than {ROOM} bytes in total")
            both = self.tokens[a] + self.tokens[b]
            if tokens is None:
                self._made.append(len(self.tokens))
                self.tokens.append(both)
            elif both in self._ids:
                self._made.append(self._ids[both])
            else:
                raise ValueError(f"BPE: merge {i} joins to {short(both)}, which is no token")
            self._ranks[a, b] = len(self.merges)
            self.merges.append((a, b))

    @classmethod
    @our_words
    def from_lists(cls, tokens: Sequence[str], merges: Iterable[str | Sequence[str]], *,
                   pattern: str = "gpt-2", added: Mapping[str, Added] = {}, **settings: Any) -> BPE:
        """Return the tokenizer of lists as files have them: tokens by id, merges such as "Ġt he".

        tokens: each byte is written as a letter, as in GPT-2; the added ones are plain text.
        settings: of BPE. Raises ValueError for another letter, and for a merge of unknown tokens.
        """
        plain = {added.id: text for text, added in added.items()}
        contents = list[bytes]()
        for i, token in enumerate(tokens):
            if not isinstance(token, str):
                raise ValueError(f"BPE: token {i} must be a str, not {describe(token)}")
            try:
                contents.append(_utf8(plain[i]) if i in plain else bytes(BYTE[c] for c in token))
            except KeyError as error:
                raise ValueError(
                    f"BPE: token {i}, {short(token)}, has {error.args[0]!r}, which stands for no "
                    "byte: give it as an added token; or these are no byte-level tokens") from None
        ids = {token: i for i, token in enumerate(tokens) if i not in plain}
        pairs = list[Pair]()
        for n, merge in enumerate(merges):
            halves = merge.split(" ") if isinstance(merge, str) else merge
            if not isinstance(halves, list | tuple) or [*map(type, halves)] != [str, str]:
                raise ValueError(f"BPE: merge {n} must be two tokens, not {describe(merge)}")
            if unknown := [half for half in halves if half not in ids]:
                raise ValueError(f"BPE: merge {n} joins {short(unknown[0])}, which is no token")
            pairs.append((ids[halves[0]], ids[halves[1]]))
        return cls(pairs, tokens=contents, pattern=pattern, added=added, **settings)

    @classmethod
    def train(cls, text: str, vocab_size: int) -> BPE:
        """Learn vocab_size - 256 merges: each time, merge the most frequent pair of ids.

        Among equally frequent pairs the one with smaller ids is merged first. The vocabulary is
        smaller than vocab_size if the text has no more pairs.
        """
        integer("BPE.train", "vocab_size", vocab_size, 256)
        words = Counter(compiled("minilora").findall(checked(text, "BPE.train")))
        counts = {word.encode(): times for word, times in words.items()}
        return cls(learned(counts, vocab_size - 256))

    @property
    def bare(self) -> bool:
        """Whether merges alone describe it: `BPE(merges)` is the same tokenizer."""
        other = self._ids or self.added or self.roles or self.nfc or self.whole_words
        return self.pattern == "minilora" and self.template == Template() and not other

    def _by_bytes(self) -> dict[bytes, int]:
        """Return bytes -> id of the ordinary tokens. ValueError if two have the same bytes."""
        ids, ours = dict[bytes, int](), {added.id for added in self.added.values()}
        for i, token in enumerate(self.tokens):
            if not isinstance(token, bytes):
                raise ValueError(f"BPE: token {i} must be bytes, not {describe(token)}")
            if i not in ours and ids.setdefault(token, i) != i:
                raise ValueError(f"BPE: tokens {ids[token]} and {i} are both {short(token)}")
        return ids

    def _words(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        return compiled(self.pattern).findall(text)

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word: its bytes, joined again and again by the earliest merge."""
        content = word.encode()
        if self.whole_words and content in self._ids:
            return [self._ids[content]]
        ids = [self._byte_ids[b] for b in content]
        if NONE in ids:
            byte = content[ids.index(NONE)]
            raise ValueError(f"BPE.encode: {short(word)} has the byte {byte:#04x}, and the "
                             "vocabulary has no token for it")
        return joined(ids, self._ranks, self._made)

    def _texts(self, ids: Iterable[int]) -> Iterator[str]:
        letters = codecs.getincrementaldecoder("utf-8")("replace")
        for i in ids:
            yield letters.decode(self.tokens[i])
        yield letters.decode(b"", True)

    def _text(self, i: int) -> str:
        plain = {added.id: text for text, added in self.added.items()}
        return plain[i] if i in plain else "".join(LETTER[b] for b in self.tokens[i])

    def _sections(self) -> dict[str, Any]:
        bytes_as_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                            "use_regex": False}
        words = {"type": "Split", "pattern": {"Regex": PATTERNS[self.pattern]},
                 "behavior": "Isolated", "invert": False}
        return {
            "normalizer": {"type": "NFC"} if self.nfc else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, bytes_as_letters]},
            "decoder": bytes_as_letters,
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": self.whole_words,
                      "vocab": self._vocabulary(),
                      "merges": [f"{self._text(a)} {self._text(b)}" for a, b in self.merges]},
        }


def _utf8(text: str) -> bytes:
    """Return the bytes of an added token's text, which `Tokenizer` checks."""
    return text.encode("utf-8", "surrogatepass")
