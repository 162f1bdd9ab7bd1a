"""Tokenizers from other libraries' files: tokenizer.json, vocab.json and merges.txt, vocab.txt.

What a file asks for and this package does not have is refused by its name, never left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any, NamedTuple

from ...checks import describe
from ...files import objects, text
from ...files.blame import blamed
from ...words import our_words
from .bpe import BPE
from .sections import Section, added_in, pattern_of, template_of
from .special import ROLES, Added, Template, Tokenizer, around
from .wordpiece import LONGEST, PREFIX, WordPiece

MOST = 1 << 26  # bytes of a file
LONGEST_WORD = "max_input_chars_per_word"  # only a WordPiece model has it
PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # the names, and OpenAI's
GPT2_ROLES = dict.fromkeys(("bos", "eos", "unk"), "<|endoftext|>")
BERT_ROLES = {role: f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
ROBERTA_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>",
                 "cls": "<s>", "mask": "<mask>"}


class _Shared(NamedTuple):
    """What a `Tokenizer` of any kind has."""

    added: dict[str, Added]
    template: Template
    roles: dict[str, int]


@our_words
def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Return the tokenizer in a folder: a `BPE` (GPT-2, RoBERTa, Llama 3, ...) or a `WordPiece`.

    It is read from tokenizer.json; or from vocab.json and merges.txt (encoder.json and vocab.bpe);
    or from vocab.txt. tokenizer_config.json and special_tokens_map.json name the roles of tokens.
    Padding and truncation belong to a call, so what the file says of them is not read.
    Raises a ValueError that begins with the file's name if the file is damaged, or asks for
    something that is not implemented here, such as SentencePiece's pieces.
    """
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"{folder} is not a folder: give one with a tokenizer.json")
    config = _settings(place)
    if (path := place / "tokenizer.json").exists():
        with blamed(path):
            return _from_json(_json(path), config)
    for vocab, merges in PAIRS:
        if (place / vocab).exists() and (place / merges).exists():
            with blamed(place / vocab):
                return _from_vocab_and_merges(place / vocab, place / merges, config)
    if (path := place / "vocab.txt").exists():
        with blamed(path):
            return _from_vocab(text.read(path, MOST), config)
    raise ValueError(
        f"{folder} has no tokenizer: it needs tokenizer.json, vocab.json and merges.txt, or "
        "vocab.txt (a tokenizer.model is SentencePiece's, and is not read)")


def _from_json(whole: Section, config: Section) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json."""
    model = whole.section("model")
    guess = "BPE" if "merges" in model else "WordPiece" if LONGEST_WORD in model else "unknown"
    kind = model.get("type", str, guess)  # old files do not say it
    if kind not in ("BPE", "WordPiece"):
        raise ValueError(
            f"its model is {kind[:30]}: only byte-level BPE and WordPiece are implemented here")
    normalizers = whole.chain("normalizer", "normalizers")
    if len(normalizers) > 1:
        raise ValueError("its normalizer is a sequence: of normalizers, one is implemented here")
    added = added_in(whole, plain=not normalizers)
    tokens = _in_order(model.get("vocab", dict), added)
    shared = _Shared(added, template_of(whole, tokens), _roles(config, {}, tokens))
    return (_bpe if kind == "BPE" else _wordpiece)(whole, model, tokens, normalizers, shared)


def _bpe(whole: Section, model: Section, tokens: list[str], normalizers: list[Section],
         shared: _Shared) -> Tokenizer:
    model.only(type=None, vocab=None, merges=None, unk_token=None, fuse_unk=None,
               dropout=(None, 0.0), continuing_subword_prefix=(None, ""),
               end_of_word_suffix=(None, ""), byte_fallback=(False,), ignore_merges=None)
    for decoder in whole.chain("decoder", "decoders"):
        decoder.among(type=("ByteLevel",))
    for normalizer in normalizers:
        normalizer.only(type=("NFC",))
    return BPE.from_lists(tokens, model.get("merges", list), pattern=pattern_of(whole),
                          nfc=bool(normalizers), **shared._asdict(),
                          whole_words=model.get("ignore_merges", bool, False))


def _wordpiece(whole: Section, model: Section, tokens: list[str], normalizers: list[Section],
               shared: _Shared) -> Tokenizer:
    model.only(type=None, vocab=None, unk_token=None, continuing_subword_prefix=(PREFIX,),
               max_input_chars_per_word=(LONGEST,))
    for decoder in whole.chain("decoder", "decoders"):
        decoder.only(type=("WordPiece",), prefix=(PREFIX,), cleanup=(True,))
    whole.section("pre_tokenizer").only(type=("BertPreTokenizer",))
    if not normalizers:
        raise ValueError("it has no normalizer: WordPiece is implemented with BertNormalizer only")
    normalizers[0].only(type=("BertNormalizer",), clean_text=(True,), handle_chinese_chars=None,
                        strip_accents=None, lowercase=None)
    return WordPiece(tokens, lowercase=normalizers[0].get("lowercase", bool),
                     strip_accents=normalizers[0].get("strip_accents", bool, None),
                     space_chinese=normalizers[0].get("handle_chinese_chars", bool),
                     unknown=model.get("unk_token", str), **shared._asdict())


def _from_vocab_and_merges(vocab: Path, merges: Path, config: Section) -> Tokenizer:
    """Return the tokenizer of a vocabulary and its merges: GPT-2's, RoBERTa's or Qwen2's."""
    ids = _json(vocab).content
    guess = "Roberta" if "<mask>" in ids else "GPT2"
    kind = config.get("tokenizer_class", str, guess).removesuffix("Fast").removesuffix("Tokenizer")
    if kind not in ("GPT2", "Roberta", "Qwen2"):
        raise ValueError(f"its tokenizer_class is {kind[:30]}: without a tokenizer.json, only "
                         "those of GPT2, Roberta and Qwen2 are known")
    config.among(add_prefix_space=(False, None), add_bos_token=(False, None),
                     add_eos_token=(False, None))
    named = {"GPT2": GPT2_ROLES, "Roberta": ROBERTA_ROLES, "Qwen2": {}}[kind]
    added = {name: Added(ids[name], lstrip=kind == "Roberta" and role == "mask")
             for role, name in _names(config, named).items() if name in ids}
    more = config.get("added_tokens_decoder", dict, {})
    listed = Section("tokenizer_config.json", {"added_tokens": [
        {"id": int(i), **token} if isinstance(token, dict) and i.isdecimal() else token
        for i, token in more.items()]})
    added |= added_in(listed, plain=True)
    tokens = _in_order(ids, added)
    lines = text.read(merges, MOST).split("\n")
    lines = [line for n, line in enumerate(lines)
             if line and not (n == 0 and line.startswith("#version"))]
    roles = _roles(config, named, tokens)
    template = Template()
    if kind == "Roberta" and "cls" in roles and "sep" in roles:
        template = around(roles["cls"], roles["sep"], doubled=True)
    with blamed(merges):
        return BPE.from_lists(tokens, lines, pattern="qwen2" if kind == "Qwen2" else "gpt-2",
                              added=added, template=template, roles=roles, nfc=kind == "Qwen2")


def _from_vocab(lines: str, config: Section) -> Tokenizer:
    """Return the tokenizer of BERT's vocab.txt: one token a line."""
    config.among(do_basic_tokenize=(True, None), never_split=(None, []))
    tokens = lines.removesuffix("\n").split("\n")
    ids = {token: i for i, token in enumerate(tokens)}
    names = _names(config, BERT_ROLES)
    added = {name: Added(ids[name]) for name in names.values() if name in ids}
    roles = _roles(config, BERT_ROLES, tokens)
    template = Template()
    if "cls" in roles and "sep" in roles:
        template = around(roles["cls"], roles["sep"])
    return WordPiece(tokens, lowercase=config.get("do_lower_case", bool, True),
                     strip_accents=config.get("strip_accents", bool, None), unknown=names["unk"],
                     space_chinese=config.get("tokenize_chinese_chars", bool, True),
                     added=added, template=template, roles=roles)


def _in_order(vocab: Mapping[str, Any], added: Mapping[str, Added]) -> list[str]:
    """Return the tokens by id. Raises ValueError unless each id from 0 on has one token."""
    tokens: dict[int, str] = {}
    for token, i in [*vocab.items(), *((name, token.id) for name, token in added.items())]:
        if type(i) is not int or i < 0:
            raise ValueError(f"the id of {short(token)} is {describe(i)}, not an integer >= 0")
        if tokens.setdefault(i, token) != token:
            raise ValueError(f"{short(tokens[i])} and {short(token)} both have id {i}")
        if vocab.get(token, i) != i:
            raise ValueError(f"{short(token)} has two ids, {vocab[token]} and {i}")
    if missing := next((i for i in range(len(tokens)) if i not in tokens), None):
        raise ValueError(f"no token has id {missing}, and {len(tokens)} tokens have one")
    return [tokens[i] for i in range(len(tokens))]


def _names(config: Section, usual: Mapping[str, str]) -> dict[str, str]:
    """Return the token of each role, as the settings name it, or as is usual."""
    names = dict(usual)
    for role in ROLES:
        named = config.content.get(f"{role}_token")
        named = named.get("content") if isinstance(named, dict) else named
        if named is not None and not isinstance(named, str):
            raise ValueError(f"its {role}_token is {describe(named)}, not a token")
        if named:
            names[role] = named
    return names


def _roles(config: Section, usual: Mapping[str, str], tokens: list[str]) -> dict[str, int]:
    """Return the id of each role. Raises ValueError if the settings name an unknown token."""
    ids = {token: i for i, token in enumerate(tokens)}
    roles: dict[str, int] = {}
    for role, name in _names(config, usual).items():
        if name in ids:
            roles[role] = ids[name]
        elif name != usual.get(role):
            raise ValueError(f"its {role}_token is {short(name)}, which is not in the vocabulary")
    return roles


def _settings(folder: Path) -> Section:
    """Return what tokenizer_config.json and special_tokens_map.json say."""
    content: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).exists():
            with blamed(path):
                content |= _json(path).content
    return Section("tokenizer_config.json", content)


def _json(path: Path) -> Section:
    """Return the object in a JSON file."""
    return Section(path.name, objects.read(path, MOST))
