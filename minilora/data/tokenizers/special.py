"""What all tokenizers share: special tokens, the tokens around a sequence, ids back to text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...checks import describe, integer
from ...files import atomic
from ...words import our_words
from .patterns import SPACE

Ids = NDArray[np.int32]
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
WORDS, LETTERS = 1 << 16, 64  # of the cache: most words, most letters of a word


class Added(NamedTuple):
    """A token that is looked for before a text is split into words, such as <|endoftext|>.

    special: it is looked for only where `allowed_special` says so; False: always.
    lstrip, rstrip: it takes the white space before it, or after it, with it.
    """

    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


class Template(NamedTuple):
    """Tokens around a sequence "A", and around a pair "A", "B": (id or letter, type) of each."""

    single: tuple[tuple[int | str, int], ...] = (("A", 0),)
    pair: tuple[tuple[int | str, int], ...] = (("A", 0), ("B", 1))


def around(begin: int, end: int, doubled: bool = False) -> Template:
    """Return BERT's template; doubled: RoBERTa's, with two ends between a pair, all of one type."""
    single = ((begin, 0), ("A", 0), (end, 0))
    other = ((end, 0), ("B", 0), (end, 0)) if doubled else (("B", 1), (end, 1))
    return Template(single, (*single, *other))


class Tokenizer:
    """A tokenizer: a kind says how words become ids, and which bytes or letters an id stands for.

    tokens     the vocabulary, by id
    added      text -> `Added`: special tokens, and others that no word is part of
    template   what `with_special` puts around sequences
    roles      "eos", "pad", ... -> id, as far as the tokenizer's files name them
    """

    tokens: list[Any]

    def __init__(self, added: Mapping[str, Added], template: Template, roles: Mapping[str, int]
                 ) -> None:
        who, n = type(self).__name__, self.vocab_size
        self.added, self.template, self.roles = dict(added), template, dict(roles)
        self._cache: dict[str, list[int]] = {}
        for text in added:
            if not text or _surrogate(text):
                raise ValueError(f"{who}: {short(text)} cannot be an added token")
        if len({a.id for a in added.values()}) < len(added):
            raise ValueError(f"{who}: two added tokens have one id")
        named = [*template.single, *template.pair]
        for i in [*(a.id for a in added.values()), *(i for i, _ in named if i not in ("A", "B")),
                  *roles.values()]:
            if type(i) is not int or not 0 <= i < n:
                raise ValueError(f"{who}: id {i} is outside the vocabulary of {n}")
        for _, type_id in named:
            integer(who, "the type of each part of the template", type_id, 0, 255)
        self._special_ids = {added.id for added in self.added.values() if added.special}

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def special(self) -> dict[str, int]:
        """The special tokens: text -> id."""
        return {text: added.id for text, added in self.added.items() if added.special}

    @our_words
    def encode(self, text: str, *, allowed_special: str | Collection[str] = (),
               add_special: bool = False) -> Ids:
        """Return the ids of a text        (n,) int32. Short words are cached.

        allowed_special: the special tokens that the text may contain, or "all". Any other text that
        looks like one is ordinary text, so a user cannot write one by hand. add_special: put the
        model's special tokens around the ids, as `with_special` does.
        Raises ValueError for a lone surrogate or an unknown special token, TypeError for no str.
        """
        ids: list[int] = []
        for part, token in self._parts(checked(text, self._who("encode")), allowed_special):
            for word in self._words(part):
                known = self._cache.get(word)
                if known is None:
                    known = self._encode_word(word)
                    if len(word) <= LETTERS:
                        if len(self._cache) >= WORDS:
                            self._cache.clear()
                        self._cache[word] = known
                ids += known
            ids += [] if token is None else [token]
        flat = np.array(ids, dtype=np.int32)
        return self.with_special(flat)[0] if add_special else flat

    @our_words
    def with_special(self, ids: ArrayLike, other: ArrayLike | None = None) -> tuple[Ids, Ids]:
        """Return (ids, types) with the model's special tokens around one or two encoded texts.

        BERT: [CLS] ids [SEP] and, of a pair, other [SEP], whose types are 1. GPT-2 adds nothing.
        """
        out, types = list[int](), list[int]()
        parts = {"A": ids, "B": other}
        for what, type_id in self.template.single if other is None else self.template.pair:
            part = self._checked(parts[what], "with_special") if isinstance(what, str) else [what]
            out += part
            types += [type_id] * len(part)
        return np.array(out, dtype=np.int32), np.array(types, dtype=np.int32)

    @our_words
    def decode(self, ids: ArrayLike, *, skip_special: bool = False) -> str:
        """Return the text of ids; skip_special: without special tokens."""
        return "".join(self._texts(self._shown(self._checked(ids, "decode"), skip_special)))

    @our_words
    def stream(self, ids: Iterable[int], *, skip_special: bool = False) -> Iterator[str]:
        """Yield the text that each id adds, "" while a letter is incomplete, and then the rest.

        The ids may be generated one at a time. All parts together are what `decode` returns.
        """
        checked = (self._checked([i], "stream")[0] for i in ids)
        return self._texts(self._shown(checked, skip_special))

    @our_words
    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write tokenizer.json and tokenizer_config.json to a folder, which transformers reads too.

        Return the folder; it is created if it is not there.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        roles = {f"{role}_token": self._text(i) for role, i in self.roles.items()}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
        if any(type_id for _, type_id in self.template.pair):
            config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        added = [{"id": a.id, "content": text, "single_word": False, "lstrip": a.lstrip,
                  "rstrip": a.rstrip, "normalized": False, "special": a.special}
                 for text, a in sorted(self.added.items(), key=lambda item: item[1].id)]
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
                 **self._sections(), "post_processor": self._processor()}
        for name, content in (("tokenizer.json", whole), ("tokenizer_config.json", config)):
            with atomic.writing(out / name) as file:
                file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())
        return out

    # What a kind has: the words of a text, the ids of a word, the texts of ids, its JSON.

    def _words(self, text: str) -> Iterable[str]:
        raise NotImplementedError

    def _encode_word(self, word: str) -> list[int]:
        raise NotImplementedError

    def _texts(self, ids: Iterable[int]) -> Iterator[str]:
        raise NotImplementedError

    def _sections(self) -> dict[str, Any]:
        """Return the sections of tokenizer.json that belong to this kind."""
        raise NotImplementedError

    def _text(self, i: int) -> str:
        """Return the token i as tokenizer.json writes it."""
        raise NotImplementedError

    # What the verbs above share.

    def _who(self, verb: str) -> str:
        return f"{type(self).__name__}.{verb}"

    def _parts(self, text: str, allowed: str | Collection[str]) -> Iterator[tuple[str, int | None]]:
        """Yield (ordinary text, the added token after it or None). The longest token wins."""
        if isinstance(allowed, str):
            if allowed != "all":
                raise ValueError(f"{self._who('encode')}: allowed_special must be \"all\" or a "
                                 f"collection of special tokens, not {short(allowed)}")
            allowed = self.special
        if unknown := [name for name in allowed if name not in self.special]:
            names = ", ".join([*self.special][:8]) or "none"
            raise ValueError(f"{self._who('encode')}: {short(unknown[0])} is not a special token "
                             f"here: they are {names}")
        looked_for = [name for name, added in self.added.items()
                      if not added.special or name in allowed]
        begin = 0
        if looked_for:
            any_of = "|".join(map(re.escape, sorted(looked_for, key=len, reverse=True)))
            for match in re.finditer(any_of, text):
                added, end = self.added[match[0]], match.end()
                part = text[begin : max(begin, match.start())]
                yield part.rstrip(_WHITE) if added.lstrip else part, added.id
                rest = text[end:] if added.rstrip else ""
                begin = end + len(rest) - len(rest.lstrip(_WHITE))
        yield text[begin:], None

    def _shown(self, ids: Iterable[int], skip_special: bool) -> Iterator[int]:
        """Return the ids that are written as text."""
        return (i for i in ids if not (skip_special and i in self._special_ids))

    def _vocabulary(self) -> dict[str, int]:
        """Return text -> id, without the added tokens after the last ordinary one.

        Raises ValueError if two tokens have one text: no file can tell them apart.
        """
        ours = {a.id for a in self.added.values()}
        last = max((i for i in range(self.vocab_size) if i not in ours), default=-1)
        ids: dict[str, int] = {}
        for i in range(last + 1):
            if (text := self._text(i)) in ids:
                raise ValueError(
                    f"{self._who('save')}: tokens {ids[text]} and {i} are both {short(text)}: a "
                    "tokenizer.json cannot tell them apart")
            ids[text] = i
        return ids

    def _checked(self, ids: Any, verb: str) -> list[int]:
        """Return ids as a list, or raise TypeError or ValueError."""
        flat = np.ravel(ids)
        if flat.size and not np.issubdtype(flat.dtype, np.integer):
            raise TypeError(f"{self._who(verb)}: ids must be integers, not {flat.dtype}")
        for i in flat[(flat < 0) | (flat >= self.vocab_size)].tolist():
            raise ValueError(
                f"{self._who(verb)}: id {i} is outside the vocabulary of {self.vocab_size}")
        return list(flat.tolist())

    def _processor(self) -> dict[str, Any] | None:
        """Return the template as tokenizer.json has it."""
        if self.template == Template():
            return None
        names = {i: self._text(i) for i, _ in [*self.template.single, *self.template.pair]
                 if isinstance(i, int)}

        def piece(what: int | str, type_id: int) -> dict[str, Any]:
            kind = "Sequence" if isinstance(what, str) else "SpecialToken"
            return {kind: {"id": what if isinstance(what, str) else names[what],
                           "type_id": type_id}}

        tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for i, name in names.items()}
        return {"type": "TemplateProcessing", "special_tokens": tokens,
                "single": [piece(*part) for part in self.template.single],
                "pair": [piece(*part) for part in self.template.pair]}


_WHITE = "".join(chr(i) for i in range(0x3001) if re.match(f"[{SPACE}]", chr(i)))


def checked(text: Any, who: str) -> str:
    """Return the text. Raises TypeError for anything but a str, ValueError for a surrogate."""
    if not isinstance(text, str):
        raise TypeError(f"{who}: text must be a str, not {describe(text)}")
    if at := _surrogate(text):
        raise ValueError(f"{who}: text has a lone surrogate, {at}: not UTF-8")
    return text


def _surrogate(text: str) -> str:
    """Return the first lone surrogate of a text, such as U+D800, or ""."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"U+{ord(text[error.start]):04X}"
    return ""
