"""Tokenizers in files: what is written is read, what is not implemented is refused by its name."""

import copy
import json
import random
import shutil
import time

import numpy as np
import pytest
from fuzz import ODD, cut, flipped, moved
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizers import BERT, SAMPLE, SMALL, foreign, letters, tricky, wordpiece

import minilora as ml
from minilora.data import BPE, WordPiece, load_tokenizer
from minilora.data.tokenizers import Added, Template
from minilora.data.tokenizers.patterns import PATTERNS
from minilora.data.tokenizers.special import around

pytestmark = pytest.mark.usefixtures("numpy_only")
KINDS = {
    **{name: foreign(name) for name in PATTERNS}, "bare": SMALL, "bert": BERT,
    "composed": foreign("qwen2", nfc=True, roles={}),
    "cased": wordpiece(lowercase=False, strip_accents=True, space_chinese=False, unknown="[MASK]"),
    "whole": foreign("llama-bpe", whole_words=True, template=Template()),
}


def facts(tokenizer):
    """All that a tokenizer consists of; what it only remembers is left out."""
    remembered = ("_cache", "_clean", "_plain")
    return {name: value for name, value in vars(tokenizer).items() if name not in remembered}


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_tokenizer_is_read_back(kind, tmp_path):
    tokenizer = KINDS[kind]
    again = load_tokenizer(tokenizer.save(tmp_path / "new"))
    assert type(again) is type(tokenizer)
    if kind == "bare":
        assert again.encode(SAMPLE).tolist() == SMALL.encode(SAMPLE).tolist()
        assert again.merges == SMALL.merges and again.pattern == "minilora"
    else:
        assert facts(again) == facts(tokenizer)
    again.save(tmp_path / "new")  # replaced
    assert sorted(x.name for x in (tmp_path / "new").iterdir()) == [
        "tokenizer.json", "tokenizer_config.json"]


@given(text=tricky)
def test_what_is_read_back_encodes_alike(text, tmp_path):
    for tokenizer in (foreign("smollm"), BERT):
        again = load_tokenizer(tokenizer.save(tmp_path))
        for allowed in ((), "all"):
            ids = tokenizer.encode(text + "<|end|>[CLS]", allowed_special=allowed)
            assert np.array_equal(ids, again.encode(text + "<|end|>[CLS]", allowed_special=allowed))


def test_two_tokens_with_one_text_are_not_written(tmp_path):
    bpe = BPE([(97, 98), (256, 99), (98, 99), (97, 258)])
    with pytest.raises(ValueError, match=r"save: tokens 257 and 259 are both 'abc'"):
        bpe.save(tmp_path)
    assert not list(tmp_path.iterdir())


# The other files


def write(folder, **files):
    """Write files: a str as it is, anything else as JSON; the name without its last part."""
    for name, content in files.items():
        stem, _, end = name.rpartition("_")
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{stem}.{end}").write_text(text, "utf-8")
    return folder


def vocabulary(*more):
    tokens = [*letters(SMALL), *more]
    return {token: i for i, token in enumerate(tokens)}


MERGES = "#version: 0.2\n" + "".join(
    f"{letters(SMALL)[a]} {letters(SMALL)[b]}\n" for a, b in SMALL.merges)


@pytest.mark.parametrize("names", [("vocab_json", "merges_txt"), ("encoder_json", "vocab_bpe")])
def test_a_vocabulary_with_merges_is_that_of_gpt2(names, tmp_path):
    write(tmp_path, **dict(zip(names, (vocabulary("<|endoftext|>"), MERGES))))
    bpe = load_tokenizer(tmp_path)
    assert bpe.pattern == "gpt-2" and bpe.merges == SMALL.merges and not bpe.nfc
    end = SMALL.vocab_size
    assert bpe.special == {"<|endoftext|>": end} and bpe.template == Template()
    assert bpe.roles == {"bos": end, "eos": end, "unk": end}


def test_a_vocabulary_with_merges_may_be_that_of_roberta_or_qwen2(tmp_path):
    ends = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    ids = vocabulary(*ends)
    roberta = load_tokenizer(write(tmp_path, vocab_json=ids, merges_txt=MERGES))
    s, end = ids["<s>"], ids["</s>"]
    assert roberta.template == around(s, end, doubled=True)
    assert roberta.with_special([1], [2])[0].tolist() == [s, 1, end, end, 2, end]
    assert not roberta.with_special([1], [2])[1].any()
    assert roberta.added["<mask>"] == Added(ids["<mask>"], lstrip=True)
    assert not roberta.added["<s>"].lstrip and roberta.roles["pad"] == ids["<pad>"]
    more = {str(len(ids)): {"content": "<|im_end|>", "special": True, "normalized": False},
            str(len(ids) + 1): {"content": "<tool>", "special": False, "normalized": False}}
    qwen = load_tokenizer(write(tmp_path, tokenizer_config_json={
        "tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": more,
        "eos_token": {"content": "<|im_end|>"}}))
    assert qwen.pattern == "qwen2" and qwen.nfc and qwen.roles == {"eos": len(ids)}
    assert qwen.special == {"<|im_end|>": len(ids)} and not qwen.added["<tool>"].special


def test_a_list_of_pieces_is_that_of_bert(tmp_path):
    write(tmp_path, vocab_txt="\n".join(BERT.tokens) + "\n")
    bert = load_tokenizer(tmp_path)
    assert facts(bert) == facts(wordpiece(
        roles={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}))
    write(tmp_path, tokenizer_config_json={
        "do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False})
    cased = load_tokenizer(tmp_path)
    assert (cased.lowercase, cased.strip_accents, cased.space_chinese) == (False, True, False)


def test_roles_are_named_by_the_settings(tmp_path):
    foreign(roles={}).save(tmp_path)
    write(tmp_path, special_tokens_map_json={"pad_token": "<|end|>", "eos_token": "<tool>"},
          tokenizer_config_json={"eos_token": {"content": "<mask>"}, "unk_token": None})
    assert load_tokenizer(tmp_path).roles == {"eos": 2, "pad": 0}
    for name, words in (("<no>", "'<no>', which is not in the vocabulary"), (3, "3, not a token")):
        write(tmp_path, tokenizer_config_json={"eos_token": name})
        with pytest.raises(ValueError, match=f"its eos_token is {words}"):
            load_tokenizer(tmp_path)


# What is refused


def _put(whole, path, value):
    *way, last = path.split(".")
    for key in way:
        whole = whole[int(key) if isinstance(whole, list) else key]
    whole[int(last) if isinstance(whole, list) else last] = value


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


@pytest.mark.parametrize("kind, path, value, words", [
    ("gpt-2", "model", {"type": "Unigram", "vocab": []}, "its model is Unigram"),
    ("gpt-2", "model.byte_fallback", True, "'byte_fallback' of its model is the bool True"),
    ("gpt-2", "model.dropout", 0.1, "'dropout' of its model is 0.1"),
    ("gpt-2", "model.end_of_word_suffix", "</w>", "'end_of_word_suffix' of its model"),
    ("gpt-2", "model.news", 1, "its model has 'news', which is not implemented"),
    ("gpt-2", "normalizer", {"type": "Prepend", "prepend": "▁"}, "its normalizer has 'prepend'"),
    ("gpt-2", "normalizer", {"type": "NFKC"}, "'type' of its normalizer is the str 'NFKC'"),
    ("gpt-2", "normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 2},
     "its normalizer is a sequence"),
    ("gpt-2", "pre_tokenizer", {"type": "Metaspace"}, "its pre_tokenizer is Metaspace"),
    ("gpt-2", "pre_tokenizer", None, "its pre_tokenizer is missing"),
    ("gpt-2", "pre_tokenizer", {**BYTES, "use_regex": False}, "its pre_tokenizer is ByteLevel"),
    ("gpt-2", "pre_tokenizer", {**BYTES, "add_prefix_space": True}, "'add_prefix_space'"),
    ("gpt-2", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": False}, BYTES]}, "'individual_digits'"),
    ("gpt-2", "pre_tokenizer.pretokenizers.0.pattern", {"Regex": "x"}, "splits by 'x', and the"),
    ("gpt-2", "pre_tokenizer.pretokenizers.0.behavior", "Removed", "'behavior'"),
    ("gpt-2", "pre_tokenizer.pretokenizers.0.invert", True, "'invert'"),
    ("gpt-2", "decoder", {"type": "Metaspace"}, "'type' of its decoder"),
    ("gpt-2", "post_processor", {"type": "Mine"}, "its post_processor is Mine"),
    ("gpt-2", "post_processor.pair", [], "has no sequence, not A, B"),
    ("gpt-2", "post_processor.single.0.SpecialToken.type_id", 2**63, "the type of each part"),
    ("gpt-2", "post_processor.special_tokens", {}, "'<|end|>' of its special_tokens is None"),
    ("gpt-2", "added_tokens.0.single_word", True, "'single_word' of its added token"),
    ("composed", "added_tokens.0.normalized", True, "'normalized' of its added token"),
    ("bert", "added_tokens.0.normalized", True, "'normalized' of its added token"),
    ("gpt-2", "added_tokens.1.content", "<|end|>", "the added token '<|end|>' occurs twice"),
    ("gpt-2", "added_tokens.1.id", 0, "both have id 0"),
    ("gpt-2", "model.vocab.Ġ", 5000, "no token has id"),
    ("gpt-2", "model.vocab.Ġ", True, "the id of 'Ġ' is the bool True"),
    ("bert", "normalizer", None, "it has no normalizer"),
    ("bert", "normalizer.clean_text", False, "'clean_text'"),
    ("bert", "normalizer", {"type": "Lowercase"}, "'type' of its normalizer"),
    ("bert", "pre_tokenizer", {"type": "Whitespace"}, "'type' of its pre_tokenizer"),
    ("bert", "model.max_input_chars_per_word", 50, "'max_input_chars_per_word'"),
    ("bert", "model.continuing_subword_prefix", "@@", "'continuing_subword_prefix'"),
    ("bert", "decoder.cleanup", False, "'cleanup' of its decoder"),
])
def test_what_is_not_implemented_is_refused_by_its_name(kind, path, value, words, tmp_path):
    file = KINDS[kind].save(tmp_path) / "tokenizer.json"
    whole = json.loads(file.read_text("utf-8"))
    _put(whole, path, value)
    file.write_text(json.dumps(whole), "utf-8")
    with pytest.raises(ValueError) as error:
        load_tokenizer(tmp_path)
    assert str(error.value).startswith(str(file)) and words in str(error.value)


@pytest.mark.parametrize("config, words", [
    ({"tokenizer_class": "T5Tokenizer"}, "its tokenizer_class is T5:"),
    ({"add_prefix_space": True}, "'add_prefix_space'"),
    ({"add_bos_token": True}, "'add_bos_token'"),
])
def test_settings_that_are_not_implemented_are_refused(config, words, tmp_path):
    write(tmp_path, vocab_json=vocabulary(), merges_txt=MERGES, tokenizer_config_json=config)
    with pytest.raises(ValueError, match=words):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_says_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer: it needs tokenizer.json, vocab.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")


def test_old_forms_of_the_file_are_read(tmp_path):
    file = foreign(template=Template()).save(tmp_path) / "tokenizer.json"
    right = facts(load_tokenizer(tmp_path))
    whole = json.loads(file.read_text("utf-8"))
    del whole["model"]["type"]
    whole["model"]["merges"] = [pair.split(" ") for pair in whole["model"]["merges"]]
    whole |= {"pre_tokenizer": BYTES, "post_processor": BYTES, "padding": {"strategy": "x"}}
    file.write_text(json.dumps(whole), "utf-8")
    assert facts(load_tokenizer(tmp_path)) == right
    for kind, template in (("BertProcessing", around(0, 2)),
                           ("RobertaProcessing", around(0, 2, doubled=True))):
        whole["post_processor"] = {"type": kind, "cls": ["<|end|>", 0], "sep": ["<mask>", 2]}
        file.write_text(json.dumps(whole), "utf-8")
        assert load_tokenizer(tmp_path).template == template
    whole["post_processor"]["sep"] = ["<mask>", 1]
    file.write_text(json.dumps(whole), "utf-8")
    with pytest.raises(ValueError, match=r"'sep' of its post_processor is the list"):
        load_tokenizer(tmp_path)


# With a model


def test_a_model_in_a_folder_has_its_tokenizer(tmp_path):
    model = ml.GPT2(ml.GPT2Config(FOREIGN_SIZE, 8, 8, 1, 2), rng=0)
    model.tokenizer = KINDS["smollm"]
    again = ml.load_model(model.save_pretrained(tmp_path / "a"))
    assert facts(again.tokenizer) == facts(model.tokenizer)
    with pytest.raises(ValueError, match=r"no room for this BPE .* model.save_pretrained"):
        ml.save_model(model, tmp_path / "a.npz")
    file = tmp_path / "a" / "tokenizer.json"
    file.write_text(file.read_text("utf-8").replace('"BPE"', '"Unigram"'), "utf-8")
    with pytest.warns(UserWarning, match=r"model.tokenizer is None: .* its model is Unigram"):
        assert ml.load_model(tmp_path / "a").tokenizer is None
    KINDS["whole"].save(tmp_path / "b")
    small = ml.GPT2(ml.GPT2Config(FOREIGN_SIZE - 1, 8, 8, 1, 2), rng=0)
    shutil.rmtree(tmp_path / "a")
    shutil.copytree(tmp_path / "b", small.save_pretrained(tmp_path / "a"), dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r"its tokenizer has .* tokens, but its model has only"):
        ml.load_model(tmp_path / "a")


FOREIGN_SIZE = KINDS["smollm"].vocab_size


# Damaged files


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes, or a part of the JSON."""
    damage = rng.choice([cut, flipped, moved, None, None, None])
    if damage is not None or not content.startswith(b"{"):
        return (damage or moved)(content, rng)
    whole = json.loads(content)
    places = [(whole, key) for key in whole]
    for holder, key in places:
        below = holder[key]
        if isinstance(below, dict | list) and len(places) < 3000:
            keys = below if isinstance(below, dict) else range(len(below))
            places += [(below, key) for key in keys]
    deep = [place for place in places if place[0] is not whole.get("model", {}).get("vocab")]
    holder, key = rng.choice(rng.choice([places, deep]))
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice([*ODD, copy.deepcopy(rng.choice(places)[0])])
    return json.dumps(whole).encode("utf-8", "surrogatepass")


def judge(folder, valid, seed):
    """Read one damaged folder. Raise AssertionError unless the answer is right or one error."""
    rng = random.Random(seed)
    name = rng.choice([*valid])
    for file, content in valid.items():
        (folder / file).write_bytes(damaged(content, rng) if file == name else content)
    began = time.process_time()
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder)) and len(str(error)) < 1000, error
        assert time.process_time() - began < 2
        return "refused"
    try:
        ids = tokenizer.encode("To be, or not<|end|> to be: 1234 é中\n", allowed_special="all",
                               add_special=True)
    except ValueError as error:
        assert "the vocabulary has no token for it" in str(error)
        return "other"
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size
    tokenizer.decode(range(tokenizer.vocab_size))
    again = load_tokenizer(tokenizer.save(folder / "again"))
    assert facts(again) == facts(tokenizer)
    return "read"


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """Return a function: name of the kind -> the files of a valid folder, file -> bytes."""
    made = {kind: KINDS[kind].save(tmp_path_factory.mktemp(kind)) for kind in ("llama-bpe", "bert")}
    made["gpt-2"] = write(tmp_path_factory.mktemp("gpt-2"), merges_txt=MERGES,
                          vocab_json=vocabulary("<|endoftext|>"),
                          tokenizer_config_json={"tokenizer_class": "GPT2Tokenizer"})
    made["pieces"] = write(tmp_path_factory.mktemp("pieces"), vocab_txt="\n".join(BERT.tokens),
                           special_tokens_map_json={"cls_token": "[CLS]"})
    files = {kind: {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
             for kind, folder in made.items()}
    return files.__getitem__  # which a failing example shows in one line


KINDS_OF_FILES = ["llama-bpe", "bert", "gpt-2", "pieces"]


@pytest.mark.parametrize("kind", KINDS_OF_FILES)
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_correctly_or_refused(kind, seed, valid, tmp_path):
    judge(tmp_path, valid(kind), seed)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS_OF_FILES)
def test_ten_thousand_damaged_files(kind, valid, tmp_path):
    for seed in range(10_000):
        judge(tmp_path, valid(kind), seed)


def test_a_file_may_be_a_wordpiece_without_its_type(tmp_path):
    file = BERT.save(tmp_path) / "tokenizer.json"
    whole = json.loads(file.read_text("utf-8"))
    del whole["model"]["type"]
    file.write_text(json.dumps(whole), "utf-8")
    assert type(load_tokenizer(tmp_path)) is WordPiece
