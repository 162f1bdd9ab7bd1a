"""A tokenizer of whole words, for the small synthetic tasks."""

from __future__ import annotations

from collections.abc import Sequence

PAD, END, SEP, CLS, MASK = SPECIAL = ("<pad>", "<end>", "<sep>", "<cls>", "<mask>")


class Words:
    """A tokenizer with one token for each word: the special words first, then `words` in order.

    Its ids are stable: the model files depend on them. An unknown word raises ValueError.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = (*SPECIAL, *words)
        for word in self.words:
            if not isinstance(word, str) or word.split() != [word]:
                raise ValueError(f"Words: {word!r} is not a word: give text without spaces")
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            twice = next(w for i, w in enumerate(self.words) if self.ids[w] != i)
            raise ValueError(f"Words: {twice!r} is given twice")

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words of a text."""
        try:
            return [self.ids[word] for word in text.split()]
        except KeyError as error:
            raise ValueError(
                f"Words: {error.args[0]!r} is not one of the {self.vocab_size} words"
            ) from None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words, up to the first <end>, without special words."""
        words: list[str] = []
        for i in ids:
            if self.words[int(i)] == END:
                break
            words += [self.words[int(i)]] * (self.words[int(i)] not in SPECIAL)
        return " ".join(words)
