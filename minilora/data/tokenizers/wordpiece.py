"""Text to token ids and back: WordPiece, the tokenizer of BERT."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from reprlib import repr as short
from typing import Any

from ...checks import describe
from ...words import our_words
from .special import Added, Template, Tokenizer

PREFIX = "##"  # of a token that is not the start of a word
LONGEST = 100  # letters of a word; a longer one is unknown
CHINESE = (  # each of these characters is a word; the ranges are those of the library `tokenizers`
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F),
    (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
)
GLUED = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")  # decoded without a space before


class WordPiece(Tokenizer):
    """WordPiece: a word is the longest token that it begins with, then the longest of the rest.

    Tokens that continue a word begin with "##". A word that has no such tokens is one [UNK].
    Before, a text is cleaned of control characters, Chinese characters and punctuation become
    words of their own, and (lowercase) letters lose their accents and become small. So `decode`
    does not give back the text. Source: Devlin et al. 2019, and the code that they released.
    Categories are those of `unicodedata`; libraries with an older table of Unicode treat newer
    punctuation and accents as letters.
    """

    @our_words
    def __init__(
        self, tokens: Sequence[str], *, lowercase: bool = True, strip_accents: bool | None = None,
        space_chinese: bool = True, unknown: str = "[UNK]", added: Mapping[str, Added] = {},
        template: Template = Template(), roles: Mapping[str, int] = {},  # noqa: B008
    ) -> None:
        """tokens: by id. strip_accents: None: where lowercase is True.

        added, template, roles: as in `Tokenizer`. Raises ValueError for a token that occurs twice
        or is no str, and if `unknown` is not among them.
        """
        self.tokens: list[str] = list(tokens)
        super().__init__(added, template, roles)
        self.lowercase, self.strip_accents = lowercase, strip_accents
        self.space_chinese, self.unknown = space_chinese, unknown
        ids: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            if not isinstance(token, str):
                raise ValueError(f"WordPiece: token {i} must be a str, not {describe(token)}")
            if ids.setdefault(token, i) != i:
                raise ValueError(f"WordPiece: tokens {ids[token]} and {i} are both {short(token)}")
        if unknown not in ids:
            raise ValueError(
                f"WordPiece: {short(unknown)}, for unknown words, is not among the tokens")
        self._unknown = ids[unknown]
        self._ids = {token: i for token, i in ids.items() if token not in self.added}
        self._longest = max(map(len, self._ids), default=0)
        strip = lowercase if strip_accents is None else strip_accents
        self._clean = _Table(_spaced if space_chinese else _clean)
        self._form = "NFD" if strip else None
        self._plain = _Table(partial(_plain, lowercase=lowercase, strip=strip))

    def _words(self, text: str) -> list[str]:
        text = text.translate(self._clean)
        if self._form:
            text = unicodedata.normalize("NFD", text)
        return text.translate(self._plain).split()

    def _encode_word(self, word: str) -> list[int]:
        """Return the ids of one word: each time, the longest token that the rest begins with."""
        ids, begin = list[int](), 0
        while begin < len(word) <= LONGEST:
            prefix = PREFIX if begin else ""
            for end in range(min(len(word), begin + self._longest), begin, -1):
                if (token := self._ids.get(prefix + word[begin:end])) is not None:
                    break
            else:
                break
            ids.append(token)
            begin = end
        return ids if begin == len(word) else [self._unknown]

    def _texts(self, ids: Iterable[int]) -> Iterator[str]:
        for n, i in enumerate(ids):
            token = self.tokens[i]
            if n and token.startswith(PREFIX):
                yield token.removeprefix(PREFIX)
            else:
                yield token if not n or token.startswith(GLUED) else f" {token}"

    def _text(self, i: int) -> str:
        return self.tokens[i]

    def _sections(self) -> dict[str, Any]:
        return {
            "normalizer": {"type": "BertNormalizer", "clean_text": True,
                           "handle_chinese_chars": self.space_chinese,
                           "strip_accents": self.strip_accents, "lowercase": self.lowercase},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "decoder": {"type": "WordPiece", "prefix": PREFIX, "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": self.unknown,
                      "continuing_subword_prefix": PREFIX, "max_input_chars_per_word": LONGEST,
                      "vocab": self._vocabulary()},
        }


class _Table(dict[int, str]):
    """For str.translate: a function of one character, called once for each."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self.function = function

    def __missing__(self, code: int) -> str:
        self[code] = self.function(chr(code))
        return self[code]


def _clean(c: str) -> str:
    """Return a space for white space, "" for a control character, else the character."""
    kind = unicodedata.category(c)
    if c in "\t\n\r" or kind[0] == "Z":
        return " "
    return "" if c == "\ufffd" or kind in ("Cc", "Cf", "Co") else c


def _spaced(c: str) -> str:
    """Return `_clean`, and a Chinese character between spaces."""
    return f" {c} " if any(a <= ord(c) <= b for a, b in CHINESE) else _clean(c)


def _plain(c: str, lowercase: bool, strip: bool) -> str:
    """Return a character without accent and small, and punctuation between spaces."""
    kind = unicodedata.category(c)
    if strip and kind == "Mn":
        return ""
    if kind[0] == "P" or (c.isascii() and kind[0] == "S"):
        return f" {c} "
    return c.lower() if lowercase else c
