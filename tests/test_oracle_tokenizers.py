"""Tokenizers against the library `tokenizers`, on any Unicode that both of them know.

Python and the library have tables of Unicode of different age. For the patterns of BPE, both agree
on each character that Python knows. The library's BERT has categories from 2015: there, a character
is left out if the category matters to BERT, or it has an accent, and was not so in Unicode 3.2.
MINILORA_TOKENIZERS may name folders with real tokenizers, with os.pathsep between them.
"""

import json
import os
import sys
import unicodedata
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers import SAMPLE

import minilora as ml
from minilora.data import WordPiece, load_tokenizer
from minilora.data.tokenizers.patterns import PATTERNS, compiled
from minilora.data.tokenizers.special import Template

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import (  # noqa: E402
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

pytestmark = [pytest.mark.oracle, pytest.mark.usefixtures("numpy_only")]

TEXT = SAMPLE * 3 + "unaffable Ångström naïve 1234 don't 中文 Ünïcödé we'll 3.14\n" * 20
ENDS = ["<|end|>", "<|end|>ing", "<s>", "</s>", "<mask>", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
FEW = [*" \t\n\r\x0b\x1c\x85\u2028\u3000'sStTrevLldm_12²½一é\u0301\u0323\u200b!?ſKAabcΣİßǅ\ufb01#",
       *ENDS, "<tool>", "the", "Whether", "'LL", "'re", " to be", "\n\n"]


def known(c: str) -> bool:
    return unicodedata.category(c) != "Cn"


def known_to_bert(c: str) -> bool:
    def kind(category: str) -> str:
        return category if category in ("Cc", "Cf", "Co", "Mn") else "P" * (category[0] == "P")

    old = unicodedata.ucd_3_2_0
    return (known(c) and kind(unicodedata.category(c)) == kind(old.category(c))
            and unicodedata.decomposition(c) == old.decomposition(c))


def batched(wanted):
    """Yield all characters that are wanted, 500 at a time."""
    codes = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    characters = filter(wanted, codes)
    while some := [*islice(characters, 500)]:
        yield some


def texts(wanted):
    character = st.characters(exclude_categories=["Cs", "Cn"]).filter(wanted)
    return st.lists(st.one_of(st.sampled_from(FEW), character), max_size=30).map("".join)


def trained(model, trainer, pre_tokenizer, normalizer=None, mask=False):
    """Return a tokenizer of the library, trained on TEXT."""
    theirs = Tokenizer(model)
    theirs.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        theirs.normalizer = normalizer
    theirs.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    theirs.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)] * mask)
    theirs.add_tokens([AddedToken("<tool>", rstrip=True, normalized=False)] * mask)
    return theirs


def byte_level(name, **how):
    """Return a byte-level BPE of the library with one of the patterns, as its models have it."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    before = {"gpt-2": gpt2, "smollm": pre_tokenizers.Sequence([digits, gpt2])}.get(name)
    if before is None:
        before = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=ENDS, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    settings = {"ignore_merges": True} if name == "llama-bpe" else {}
    nfc = normalizers.NFC() if name == "qwen2" else None
    theirs = trained(models.BPE(**settings), trainer, before, nfc, **how)
    theirs.decoder = decoders.ByteLevel()
    processor = {
        "gpt-2": processors.RobertaProcessing(("</s>", 3), ("<s>", 2)),
        "smollm": processors.ByteLevel(),
        "llama-bpe": processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(
            "<s> $A", "<s> $A </s> $B:1 </s>:1", [("<s>", 2), ("</s>", 3)])]),
    }.get(name)
    if processor is not None:
        theirs.post_processor = processor
    return theirs


def bert(**normalizer):
    """Return a WordPiece of the library."""
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=ENDS, show_progress=False)
    theirs = trained(models.WordPiece(unk_token="[UNK]"), trainer,
                     pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer(**normalizer))
    theirs.decoder = decoders.WordPiece()
    theirs.post_processor = processors.BertProcessing(("[SEP]", 6), ("[CLS]", 5))
    return theirs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a function: name -> (our tokenizer, the library's), with ours read from its file."""
    made = {}

    def pair(name):
        if name not in made:
            kind, *how = name.split()
            theirs = bert(**json.loads(" ".join(how))) if kind == "bert" else byte_level(
                kind, mask=True)
            folder = tmp_path_factory.mktemp("theirs")
            theirs.save(str(folder / "tokenizer.json"))
            made[name] = load_tokenizer(folder), theirs
        return made[name]

    return pair


def agree(ours, theirs, text, other):
    """Assert that both do the same with a text, with two, and with the ids of both."""
    for allowed in ((), "all"):
        theirs.encode_special_tokens = not allowed
        ids = ours.encode(text, allowed_special=allowed)
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
        full = ours.encode(text, allowed_special=allowed, add_special=True)
        assert full.tolist() == theirs.encode(text).ids
        second = ours.encode(other, allowed_special=allowed)
        both, types = ours.with_special(ids, second)
        expected = theirs.encode(text, other)
        assert both.tolist() == expected.ids
        if ours.template != Template():
            assert types.tolist() == expected.type_ids
        for skip in (False, True):
            decoded = theirs.decode(both.tolist(), skip_special_tokens=skip)
            assert ours.decode(both, skip_special=skip) == decoded


BERTS = ["bert {}", 'bert {"lowercase": false}', 'bert {"lowercase": false, "strip_accents": true}',
         'bert {"strip_accents": false, "handle_chinese_chars": false}']


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=100)
@given(text=texts(known), other=texts(known))
def test_byte_level_bpe_is_that_of_the_library(name, text, other, pairs):
    agree(*pairs(name), text, other)


@pytest.mark.parametrize("name", BERTS)
@settings(max_examples=100)
@given(text=texts(known_to_bert), other=texts(known_to_bert))
def test_wordpiece_is_that_of_the_library(name, text, other, pairs):
    agree(*pairs(name), text, other)


@pytest.mark.parametrize("name", ["gpt-2", "bert {}"])
@given(data=st.data(), skip=st.booleans())
def test_any_ids_are_decoded_as_by_the_library(name, data, skip, pairs):
    ours, theirs = pairs(name)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1)))
    decoded = theirs.decode(ids, skip_special_tokens=skip)
    assert ours.decode(ids, skip_special=skip) == decoded
    assert "".join(ours.stream(ids, skip_special=skip)) == decoded


@pytest.mark.parametrize("name", PATTERNS)
@given(text=texts(known))
def test_the_patterns_split_as_in_the_library(name, text):
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    assert compiled(name).findall(text) == [word for word, _ in split.pre_tokenize_str(text)]


@given(text=texts(known), spaces=st.sampled_from([" ", "  ", "\n ", "   "]))
def test_smollm_splits_at_digits_and_then_as_gpt2(text, spaces):
    digits = pre_tokenizers.Digits(individual_digits=True)
    gpt2 = pre_tokenizers.Split(Regex(PATTERNS["gpt-2"]), "isolated")
    split, text = pre_tokenizers.Sequence([digits, gpt2]), f"{text}a{spaces}1{spaces}a"
    assert compiled("smollm").findall(text) == [word for word, _ in split.pre_tokenize_str(text)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", PATTERNS)
def test_the_patterns_split_at_each_character_as_in_the_library(name):
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    for some in batched(known):
        text = "\na".join(f"a{c}'{c} {c}1{c}" for c in some)
        words = [word for word, _ in split.pre_tokenize_str(text)]
        assert compiled(name).findall(text) == words, hex(ord(some[0]))


@pytest.mark.thorough
def test_each_character_that_bert_knows_is_as_in_the_library(pairs):
    for name in BERTS:
        ours, theirs = pairs(name)
        normalizer, before = theirs.normalizer, theirs.pre_tokenizer
        for some in batched(known_to_bert):
            text = " ".join(f"a{c}b" for c in some)
            words = before.pre_tokenize_str(normalizer.normalize_str(text))
            assert ours._words(text) == [word for word, _ in words], hex(ord(some[0]))


# What we write


@pytest.mark.parametrize("name", [*PATTERNS, *BERTS])
@settings(max_examples=10)
@given(text=texts(known_to_bert), other=texts(known_to_bert))
def test_the_library_reads_what_we_write(name, text, other, pairs, tmp_path_factory):
    ours, _ = pairs(name)
    folder = tmp_path_factory.getbasetemp() / "".join(filter(str.isalnum, name))
    if not folder.exists():
        ours.save(folder)
    agree(ours, Tokenizer.from_file(str(folder / "tokenizer.json")), text, other)


def test_transformers_reads_what_we_write(tmp_path, pairs):
    transformers = pytest.importorskip("transformers")
    base = ml.load_base()
    line = "To be, or not to be: that is the Question!\n\n 'tis 1616"
    theirs = transformers.AutoTokenizer.from_pretrained(base.tokenizer.save(tmp_path / "base"))
    assert theirs(line)["input_ids"] == base.tokenizer.encode(line).tolist()
    model = ml.GPT2(ml.GPT2Config(600, 8, 8, 1, 2), rng=0)
    for name in ("gpt-2", "bert {}"):
        model.tokenizer, _ = pairs(name)
        model.tokenizer.roles = {"eos": 3, "mask": model.tokenizer.special["<mask>"]}
        folder = model.save_pretrained(tmp_path / name[:4])
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.eos_token_id == 3 and theirs.mask_token == "<mask>"
        both, types = model.tokenizer.with_special(
            *(model.tokenizer.encode(t, allowed_special="all") for t in (line, "<mask> the")))
        expected = theirs(line, "<mask> the")
        assert expected["input_ids"] == both.tolist()
        if types.any():
            assert expected["token_type_ids"] == types.tolist()


def test_a_list_of_pieces_is_read_as_transformers_reads_it(tmp_path, pairs):
    transformers = pytest.importorskip("transformers")
    tokens = pairs("bert {}")[0].tokens
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", *tokens]), "utf-8")
    for lower in (True, False):
        config = {"do_lower_case": lower, "tokenizer_class": "BertTokenizer"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        ours = load_tokenizer(tmp_path)
        theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
        text = "Whether [MASK] naïve 中文, To be!"
        ids = ours.encode(text, allowed_special="all", add_special=True)
        assert type(ours) is WordPiece and theirs(text)["input_ids"] == ids.tolist()


# Real tokenizers

FOLDERS = [name for name in os.environ.get("MINILORA_TOKENIZERS", "").split(os.pathsep) if name]


@pytest.mark.skipif(not FOLDERS, reason="MINILORA_TOKENIZERS names no folder")
@pytest.mark.parametrize("folder", FOLDERS or ["none"])
@settings(max_examples=200)
@given(text=texts(known_to_bert), other=texts(known_to_bert))
def test_real_tokenizers_are_those_of_the_library(folder, text, other):
    ours, theirs = real(folder)
    agree(ours, theirs, text, other)
    if folder in NEW:
        plays = ml.data.load_text("plays")[:200_000]
        ids = theirs.encode(plays, add_special_tokens=False).ids
        assert np.array_equal(ours.encode(plays), ids)
        NEW.remove(folder)


NEW, READ = {*FOLDERS}, {}


def real(folder):
    """Return (ours, the library's) from a folder with tokenizer.json or GPT-2's two files."""
    if folder not in READ:
        if os.path.exists(path := os.path.join(folder, "tokenizer.json")):
            theirs = Tokenizer.from_file(path)
            theirs.no_padding()
            theirs.no_truncation()
        else:
            names = [os.path.join(folder, name) for name in ("encoder.json", "vocab.bpe")]
            theirs = Tokenizer(models.BPE.from_file(*names))
            theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            theirs.decoder = decoders.ByteLevel()
            theirs.add_special_tokens([AddedToken("<|endoftext|>", normalized=False)])
        READ[folder] = load_tokenizer(folder), theirs
    return READ[folder]
