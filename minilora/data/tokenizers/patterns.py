r"""How a text is split into words before byte pairs are merged: one regular expression per model.

The expressions are those in the models' own files. They use \p{L} (letters), \p{N} (numbers) and
Unicode's white space, which the module `re` does not have: `compiled` writes them as ranges of
characters, from the categories in `unicodedata`. So a character that is newer than Python's version
of Unicode belongs to no category here, and another library may split it otherwise.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from itertools import groupby

CONTRACTION = "'s|'t|'re|'ve|'m|'ll|'d"
LLAMA = (
    rf"(?i:{CONTRACTION})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {  # by the names that GGUF files use; "minilora" is our own, and keeps lines apart
    "minilora": r"'(?:s|t|d|m|re|ve|ll)(?![\p{L}\p{N}_])| ?[\p{L}\p{Nl}\p{No}]+| ?\p{Nd}+"
                r"| ?[^\s\x1c-\x1f\p{L}\p{N}]+|\n+|[^\S\n]|[\x1c-\x1f]",
    "gpt-2": rf"{CONTRACTION}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+",
    # Each digit is a word, and then GPT-2's pattern is used between them.
    "smollm": rf"{CONTRACTION}| ?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?![^\s\p{{N}}])|\s+",
    "llama-bpe": LLAMA % "{1,3}",
    "qwen2": LLAMA % "",
}
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space
PLANES = 0x40000  # all letters and numbers are below


@functools.cache
def compiled(name: str) -> re.Pattern[str]:
    """Return PATTERNS[name] for the module `re`. Its matches cover any text."""
    inside = False  # of square brackets

    def written(match: re.Match[str]) -> str:
        nonlocal inside
        part = match[0]
        if part in "[]":
            inside = part == "["
        elif part == r"\S":  # inside brackets only as [^\S...], which `_unspaced` rewrites
            part = f"[^{SPACE}]"
        elif part == r"\s" or part.startswith(r"\p"):
            part = SPACE if part == r"\s" else _ranges(part[3:-1])
            part = part if inside else f"[{part}]"
        return part

    text = PATTERNS[name].replace(r"[^\S\n]", f"(?!\n)[{SPACE}]")
    return re.compile(re.sub(r"\\p\{\w+\}|\\[sS]|[][]", written, text))


@functools.cache
def _ranges(category: str) -> str:
    """Return the characters of a category, such as L or Nd, as ranges inside square brackets."""
    return "".join(rf"\U{first:08x}-\U{last:08x}" for name, first, last in _runs()
                   if name.startswith(category))


@functools.cache
def _runs() -> list[tuple[str, int, int]]:
    """Return (category, first, last) of each run of characters of one category."""
    runs, first = list[tuple[str, int, int]](), 0
    for name, run in groupby(map(unicodedata.category, map(chr, range(PLANES)))):
        last = first + sum(1 for _ in run) - 1
        runs.append((name, first, last))
        first = last + 1
    return runs
