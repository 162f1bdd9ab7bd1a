"""The sections of a tokenizer.json, each read for what it may say here, and refused otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from ...checks import a, describe
from .patterns import PATTERNS
from .special import Added, Template, around

_REQUIRED: Any = object()


@dataclass(frozen=True)
class Section:
    """A JSON object and what errors call it, such as "model"."""

    name: str
    content: dict[str, Any]

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def get(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """Return an entry of this type. A missing entry, or null, is the default."""
        value = self.content.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if type(value) is not kind:
            raise ValueError(
                f"{short(key)} of its {self.name} is {describe(value)}, not {a(kind.__name__)}")
        return value

    def section(self, key: str) -> Section:
        """Return an entry that is an object itself."""
        return Section(key, self.get(key, dict))

    def sections(self, key: str) -> list[Section]:
        """Return the objects in an entry that is a list."""
        parts = self.get(key, list, [])
        return [Section(self.name, {"part": part}).section("part") for part in parts]

    def chain(self, key: str, plural: str) -> list[Section]:
        """Return the parts of an entry that may be null, one object, or a Sequence of objects."""
        if self.content.get(key) is None:
            return []
        whole = self.section(key)
        parts = whole.sections(plural) if whole.content.get("type") == "Sequence" else [whole]
        return [Section(key, part.content) for part in parts]

    def only(self, **allowed: Sequence[Any] | None) -> None:
        """Raise ValueError, with its name, for any entry but these, or with another value.

        allowed: entry -> its values; None: any.
        """
        for key in self.content:
            if key not in allowed:
                raise ValueError(f"its {self.name} has {short(key)}, which is not implemented here")
        self.among(**allowed)

    def among(self, **allowed: Sequence[Any] | None) -> None:
        """Raise ValueError, with its name, for one of these entries with another value."""
        for key, values in allowed.items():
            value = self.content.get(key)
            if values is not None and key in self and not any(
                    type(value) is type(v) and value == v for v in values):
                raise ValueError(
                    f"{short(key)} of its {self.name} is {describe(value)}, and only "
                    f"{' or '.join(map(repr, values))} is implemented here")


def added_in(whole: Section, plain: bool) -> dict[str, Added]:
    """Return the added tokens. plain: no normalizer changes a text before they are looked for."""
    added: dict[str, Added] = {}
    for item in whole.sections("added_tokens"):
        token = Section("added token", item.content)
        token.only(id=None, content=None, special=None, lstrip=None, rstrip=None,
                   single_word=(False,), normalized=None if plain else (False,))
        name, flags = token.get("content", str), ("special", "lstrip", "rstrip")
        if name in added:
            raise ValueError(f"the added token {short(name)} occurs twice")
        added[name] = Added(
            token.get("id", int), **{flag: token.get(flag, bool, False) for flag in flags})
    return added


def pattern_of(whole: Section) -> str:
    """Return the name of the pattern by which a BPE splits words."""
    parts = whole.chain("pre_tokenizer", "pretokenizers")
    kinds = [part.get("type", str) for part in parts]
    if kinds[-1:] == ["ByteLevel"]:
        parts[-1].only(type=None, add_prefix_space=(False,), trim_offsets=None, use_regex=None)
        gpt2 = parts[-1].get("use_regex", bool, True)
        if kinds == ["ByteLevel"] and gpt2:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and gpt2:
            parts[0].only(type=None, individual_digits=(True,))
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not gpt2:
            parts[0].only(type=None, pattern=None, behavior=("Isolated",), invert=(False,))
            regex = parts[0].section("pattern").content.get("Regex")
            for name, known in PATTERNS.items():
                if regex == known:
                    return name
            raise ValueError(f"its pre_tokenizer splits by {short(regex)}, and the patterns known "
                             f"here are those of {', '.join(PATTERNS)}")
    raise ValueError(
        f"its pre_tokenizer is {', '.join(kinds)[:60] or 'missing'}: only the byte-level ones of "
        f"{', '.join(PATTERNS)} are implemented here")


def template_of(whole: Section, tokens: list[str]) -> Template:
    """Return the special tokens around a sequence and around a pair."""
    parts = whole.chain("post_processor", "processors")
    templates = [_template(p, tokens) for p in parts if p.content.get("type") != "ByteLevel"]
    if len(templates) > 1:
        raise ValueError(f"its post_processor has {len(templates)} templates: one is implemented")
    return templates[0] if templates else Template()


def _template(part: Section, tokens: list[str]) -> Template:
    kind = part.get("type", str)
    if kind in ("BertProcessing", "RobertaProcessing"):
        part.only(type=None, sep=None, cls=None, trim_offsets=None, add_prefix_space=None)
        begin, end = (_listed(part, key, tokens) for key in ("cls", "sep"))
        return around(begin, end, doubled=kind == "RobertaProcessing")
    if kind != "TemplateProcessing":
        raise ValueError(f"its post_processor is {kind[:30]}, which is not implemented here")
    part.only(type=None, single=None, pair=None, special_tokens=None)
    return Template(_pieces(part, "single", "A"), _pieces(part, "pair", "AB"))


def _listed(part: Section, key: str, tokens: list[str]) -> int:
    """Return the id in an entry such as ["[SEP]", 102]."""
    pair = part.get(key, list)
    if [*map(type, pair)] == [str, int] and pair[:1] == tokens[pair[1] : pair[1] + 1]:
        return int(pair[1])
    raise ValueError(
        f"{key!r} of its {part.name} is {describe(pair)}, not a token of the vocabulary and its id")


def _pieces(part: Section, key: str, sequences: str) -> tuple[tuple[int | str, int], ...]:
    """Return the pieces of a template. Each of the sequences must occur once, in this order."""
    pieces: list[tuple[int | str, int]] = []
    for piece in part.sections(key):
        kind = "Sequence" if "Sequence" in piece else "SpecialToken"
        inner = piece.section(kind)
        name, type_id = inner.get("id", str), inner.get("type_id", int)
        if kind == "SpecialToken":
            ids = part.section("special_tokens").section(name).get("ids", list)
            pieces += [(i, type_id) for i in ids]
        else:
            pieces.append((name, type_id))
    inside = [what for what, _ in pieces if isinstance(what, str)]
    if inside != list(sequences):
        has = ", ".join(inside)[:30] or "no sequence"
        raise ValueError(f"{key!r} of its {part.name} has {has}, not {', '.join(sequences)}")
    return tuple(pieces)
