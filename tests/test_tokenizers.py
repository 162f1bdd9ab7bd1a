"""Tokenizers: byte pairs, WordPiece, special tokens, text that grows id by id."""

import copy
import math
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import BPE, WordPiece
from minilora.data.tokenizers import Added, Template
from minilora.data.tokenizers.bpe import LETTER, ROOM
from minilora.data.tokenizers.patterns import PATTERNS, compiled
from minilora.data.tokenizers.special import LETTERS, around

pytestmark = pytest.mark.usefixtures("numpy_only")

any_text = st.text(st.characters(exclude_categories=["Cs"]))
few_letters = st.one_of(  # so that pairs repeat and are merged
    st.text("abc ", max_size=80), st.text("ab 'A1.\n\té", max_size=80)
)
SAMPLE = (
    "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"
    "The slings and arrows of outrageous fortune,\nOr to take arms against a sea of troubles,\n"
)
SMALL = BPE.train(SAMPLE * 3, 400)
WORD = compiled("minilora")


# Words

BEFORE = re.compile(r"'(?:s|t|d|m|re|ve|ll)\b| ?[^\W\d_]+| ?\d+| ?(?:[^\w\s]|_)+|\n+|[^\S\n]")
tricky = st.text(st.one_of(
    st.sampled_from(" \t\n\r\x0b\x1c\x1f\x85\u2028\u3000'sStTrevLldm_12²½一é\u0301\u200b!?ſKAabc"),
    st.characters(exclude_categories=["Cs"])))


@given(tricky)
def test_the_pattern_of_the_built_in_bases_is_as_python_itself_would_write_it(text: str) -> None:
    assert WORD.findall(text) == BEFORE.findall(text)


@pytest.mark.thorough
def test_each_character_is_in_the_class_that_python_itself_would_give_it() -> None:
    for code in range(sys.maxunicode + 1):
        text = f"a{chr(code)}'s{chr(code)}"
        assert WORD.findall(text) == BEFORE.findall(text), hex(code)


@pytest.mark.parametrize("name", PATTERNS)
@given(text=tricky)
def test_words_of_each_pattern_cover_the_text(name: str, text: str) -> None:
    assert "".join(compiled(name).findall(text)) == text


@pytest.mark.parametrize("name, words", [
    ("gpt-2", ["I", "'m", " 1234", " ok", "!", "\n\n ", " x"]),
    ("smollm", ["I", "'m", " ", "1", "2", "3", "4", " ok", "!", "\n\n ", " x"]),
    ("llama-bpe", ["I", "'m", " ", "123", "4", " ok", "!\n\n", " ", " x"]),
    ("qwen2", ["I", "'m", " ", "1", "2", "3", "4", " ok", "!\n\n", " ", " x"]),
    ("minilora", ["I", "'m", " 1234", " ok", "!", "\n\n", " ", " x"]),
])
def test_the_patterns_differ_in_digits_and_newlines(name: str, words: list[str]) -> None:
    assert compiled(name).findall("I'm 1234 ok!\n\n  x") == words


# Byte pairs


@given(any_text)
def test_decode_inverts_encode(text: str) -> None:
    ids = SMALL.encode(text)
    assert ids.dtype == np.int32 and ids.ndim == 1
    assert SMALL.decode(ids) == text


@given(few_letters, st.integers(0, 20), any_text)
def test_decode_inverts_encode_for_any_training_text(text: str, merges: int, other: str) -> None:
    bpe = BPE.train(text, 256 + merges)
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.decode(bpe.encode(other)) == other


@given(any_text)
def test_words_cover_the_text(text: str) -> None:
    assert "".join(WORD.findall(text)) == text


@pytest.mark.parametrize(
    "text, words",
    [
        ("the cat's  hat", ["the", " cat", "'s", " ", " hat"]),
        ("no more;\n\nto die", ["no", " more", ";", "\n\n", "to", " die"]),
        ("'tis 42 _x_!", ["'", "tis", " 42", " _", "x", "_!"]),
        ("a\tb\r\nc", ["a", "\t", "b", "\r", "\n", "c"]),
        ("déjà vu1616", ["déjà", " vu", "1616"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert WORD.findall(text) == words


@given(few_letters, few_letters)
def test_merges_never_cross_words(text: str, other: str) -> None:
    bpe = BPE.train(text, 300)
    for i in range(256, bpe.vocab_size):
        piece = b"".join(bpe.tokens[j] for j in bpe.merges[i - 256])
        assert any(piece in word.encode() for word in WORD.findall(text))
    separately = [i for word in WORD.findall(other) for i in bpe.encode(word).tolist()]
    assert bpe.encode(other).tolist() == separately


def _naive_merges(text: str, count: int) -> list[tuple[int, int]]:
    """Return the merges of algorithm 1 of Sennrich et al., counting everything again each time."""
    words = Counter(tuple(word.encode()) for word in WORD.findall(text))
    merges: list[tuple[int, int]] = []
    while len(merges) < count:
        total: Counter[tuple[int, int]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                total[pair] += times
        if not total:
            break
        best = min(total, key=lambda pair: (-total[pair], pair[0], pair[1]))
        joined: Counter[tuple[int, ...]] = Counter()
        for word, times in words.items():
            out: list[int] = []
            at = 0
            while at < len(word):
                here = word[at : at + 2] == best
                out.append(256 + len(merges) if here else word[at])
                at += 2 if here else 1
            joined[tuple(out)] += times
        words = joined
        merges.append(best)
    return merges


@given(few_letters, st.integers(0, 30))
def test_training_is_the_naive_algorithm(text: str, count: int) -> None:
    assert BPE.train(text, 256 + count).merges == _naive_merges(text, count)


@given(few_letters, st.integers(0, 30))
def test_training_words_are_encoded_as_training_left_them(text: str, count: int) -> None:
    bpe = BPE.train(text, 256 + count)
    for word in WORD.findall(text):
        ids = list(word.encode())
        for i, (a, b) in enumerate(bpe.merges):  # one merge after another, over the full word
            at = 0
            while at < len(ids) - 1:
                if ids[at : at + 2] == [a, b]:
                    ids[at : at + 2] = [256 + i]
                at += 1
        assert bpe.encode(word).tolist() == ids


def _encoded_in_rounds(bpe: BPE, word: str) -> list[int]:
    """Return the ids of a word, one merge at a time over the full word: simple and quadratic."""
    ids = list(word.encode())
    while possible := [i for i, pair in enumerate(bpe.merges) if pair in set(pairwise(ids))]:
        out: list[int] = []
        for i in ids:
            if out and (out[-1], i) == bpe.merges[possible[0]]:
                out[-1] = 256 + possible[0]
            else:
                out.append(i)
        ids = out
    return ids


@st.composite
def merges(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw untrained merges of few letters, so that they interact."""
    merges: dict[tuple[int, int], None] = {}
    for _ in range(draw(st.integers(0, 12))):
        known = st.sampled_from([*b"ab", *range(256, 256 + len(merges))])
        merges[draw(known), draw(known)] = None
    return list(merges)


@given(merges(), st.text("ab", max_size=40))
def test_a_word_is_encoded_as_in_rounds(merges: list[tuple[int, int]], word: str) -> None:
    bpe = BPE(merges)
    assert bpe.encode(word).tolist() == _encoded_in_rounds(bpe, word)
    assert bpe.decode(bpe.encode(word)) == word


@given(few_letters, st.integers(0, 40), few_letters)
def test_any_text_is_encoded_as_in_rounds(text: str, count: int, other: str) -> None:
    bpe = BPE.train(text, 256 + count)
    expected = [i for word in WORD.findall(other) for i in _encoded_in_rounds(bpe, word)]
    assert bpe.encode(other).tolist() == bpe.encode(other).tolist() == expected


def _calls(work: object) -> int:
    """Return how many functions work() calls."""
    count = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()  # type: ignore[operator]
    finally:
        sys.setprofile(None)
    return count


def test_the_work_for_a_long_word_does_not_grow_with_the_merges_that_it_takes() -> None:
    letters = np.random.default_rng(0).choice([*"etaoinshrdlu"], 3000)
    word = "".join(letters)
    bpe = BPE.train(word, 256 + 400)
    few, many = BPE(bpe.merges[:40]), BPE(bpe.merges)
    assert len(many.encode(word)) < 0.75 * len(few.encode(word))
    assert _calls(lambda: many._encode_word(word)) < 2 * _calls(lambda: few._encode_word(word))
    assert _calls(lambda: BPE.train(word, 656)) < 3 * _calls(lambda: BPE.train(word, 296))


def test_only_short_words_are_cached_and_the_cache_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minilora.data.tokenizers.special.WORDS", 3)
    bpe, texts = BPE(SMALL.merges), ["to", "be", "or", "not", "a" * LETTERS, "a" * (LETTERS + 1)]
    for text in texts * 2:
        assert bpe.encode(text).tolist() == SMALL.encode(text).tolist()
        assert len(bpe._cache) <= 3 and (text in bpe._cache) == (text != texts[-1])


def test_a_tokenizer_can_be_copied_and_pickled() -> None:
    for other in (copy.deepcopy(SMALL), pickle.loads(pickle.dumps(SMALL))):
        assert other.merges == SMALL.merges
        assert other.encode(SAMPLE).tolist() == SMALL.encode(SAMPLE).tolist()


def test_earlier_merges_go_first() -> None:
    assert BPE([(97, 98), (98, 99)]).encode("abc").tolist() == [256, 99]
    assert BPE([(98, 99), (97, 98)]).encode("abc").tolist() == [97, 256]
    assert BPE([(97, 97)]).encode("aaaaa").tolist() == [256, 256, 97]


def test_ties_go_to_the_smaller_pair() -> None:
    assert BPE.train("zy ba", 257).merges == [(ord(" "), ord("b"))]
    assert BPE.train("zy\nba", 257).merges == [(ord("b"), ord("a"))]


def test_training_does_not_depend_on_the_hash_seed() -> None:
    code = (
        """from minilora.data import BPE; print(BPE.train("do re mi fa so la ti do", 280).merges)"""
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(runs) == 1 and len(runs.pop()) > 10


@given(st.permutations(["\nthe", "\nthen", "\nother", "\nbathe", "\nhe", "\nten"]))
def test_order_of_words_does_not_matter(words: list[str]) -> None:
    expected = BPE.train("\nthe\nthen\nother\nbathe\nhe\nten", 280)
    assert BPE.train("".join(words), 280).merges == expected.merges


def test_more_merges_extend_fewer_and_shorten_the_text() -> None:
    few, many = BPE.train(SAMPLE, 270), BPE.train(SAMPLE, 300)
    assert many.merges[:14] == few.merges
    assert few.vocab_size == 270 and many.vocab_size == 300
    assert len(many.encode(SAMPLE)) < len(few.encode(SAMPLE)) < len(SAMPLE)
    assert BPE(many.merges).encode(SAMPLE).tolist() == many.encode(SAMPLE).tolist()


def test_a_small_text_stops_early() -> None:
    assert BPE.train("ab", 1000).vocab_size == 257
    assert BPE.train("", 1000).vocab_size == 256
    assert BPE.train("ab", 256).merges == []


def test_a_returned_encoding_is_the_callers_own() -> None:
    ids = SMALL.encode("question")
    ids[:] = 0
    assert SMALL.decode(SMALL.encode("question")) == "question"


def test_bpe_errors() -> None:
    with pytest.raises(ValueError, match="vocab_size must be an integer >= 256, not 255"):
        BPE.train("ab", 255)
    for ids in ([0, SMALL.vocab_size], [-1]):
        with pytest.raises(ValueError, match=f"id {ids[-1]} .* {SMALL.vocab_size}"):
            SMALL.decode(ids)
    with pytest.raises(TypeError, match="float64"):
        SMALL.decode([0.5])
    for broken in (SMALL.encode, lambda text: BPE.train(text, 300)):
        with pytest.raises(ValueError, match=r"surrogate.*D800"):
            broken("a\ud800b")
    assert SMALL.decode([]) == "" and SMALL.decode([0xFF]) == "\ufffd"
    for take in (SMALL.encode, lambda text: BPE.train(text, 300)):
        for text in (b"a", None, ["a"]):
            with pytest.raises(TypeError, match=r"^BPE\.(encode|train): text must be a str, not "):
                take(text)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [-1, 257, 258, 97.0, True, "a", None, math.nan, 10**30])
@pytest.mark.parametrize("side", [0, 1])
def test_a_merge_joins_ids_defined_before_it(bad: object, side: int) -> None:
    pair = [97, 97]
    pair[side] = bad  # type: ignore[call-overload]
    with pytest.raises(
        ValueError, match=r"^BPE: each id of token 257 .* from 0 to 256, not"
    ):
        BPE([(97, 98), pair])  # type: ignore[list-item]
    assert BPE([(97, 98), (256, 256)]).vocab_size == 258


@pytest.mark.parametrize(
    "bad, words",
    [
        ([(97, 98), 5], "token 257 must join a pair of ids, not 5"),
        ([(97, 98, 99)], "token 256 must join a pair of ids, not the tuple"),
        (["ab"], "token 256 must join a pair of ids, not the str 'ab'"),
        ([{97, 98}], "token 256 must join a pair of ids, not the set"),
        (7, "merges must be pairs of ids, not 7"),
        (None, "merges must be pairs of ids, not None"),
        (np.zeros((2, 3), int), "token 256 must join a pair of ids, not the list"),
        (np.zeros((2, 2)), "each id of token 256 .* not 0.0"),
        (np.zeros((2, 2), int), r"tokens 256 and 257 both join \(0, 0\)"),
        ([(97, 98), (98, 97), (97, 98)], r"tokens 256 and 258 both join \(97, 98\)"),
    ],
)
def test_invalid_merges_are_an_error(bad: object, words: str) -> None:
    with pytest.raises(ValueError, match=f"^BPE: {words}"):
        BPE(bad)  # type: ignore[arg-type]


def test_merges_may_be_an_array() -> None:
    bpe = BPE(np.array(SMALL.merges, np.int32))
    assert bpe.merges == SMALL.merges and type(bpe.merges[0][0]) is int
    assert BPE(np.zeros((0, 2), int)).merges == []


def test_merges_of_long_tokens_are_an_error_before_they_take_memory() -> None:
    doubling = [(97, 97), *((i, i) for i in range(256, 296))]
    fan = [*doubling[:16], *((271, i) for i in range(256)), *((i, 271) for i in range(250))]
    tracemalloc.start()
    for merges in (doubling, fan):
        words = rf"^BPE: the tokens up to \d+ have .* {ROOM} bytes in total"
        with pytest.raises(ValueError, match=words):
            BPE(merges)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.25 * ROOM < 25e6
    full = BPE([*doubling[:23], (98, 98)])  # the limit is inclusive
    assert sum(len(full.tokens[i]) for i in range(256, full.vocab_size)) == ROOM
    with pytest.raises(ValueError, match="the tokens up to 280 "):
        BPE([*full.merges, (99, 99)])


# The vocabulary of another model


def letters(bpe: BPE) -> list[str]:
    """Return the tokens as files write them: a letter for each byte."""
    return ["".join(LETTER[b] for b in token) for token in bpe.tokens]


def foreign(pattern: str = "gpt-2", **settings: object) -> BPE:
    """Return a BPE with special tokens first, and ids that are not those of bytes and merges."""
    ends = ["<|end|>", "<|end|>ing", "<mask>", "<tool>"]
    texts = letters(SMALL)
    merges = [f"{texts[a]} {texts[b]}" for a, b in SMALL.merges]
    added = {"<|end|>": Added(0), "<|end|>ing": Added(1), "<mask>": Added(2, lstrip=True),
             "<tool>": Added(3, special=False, rstrip=True)}
    template = Template(((0, 0), ("A", 0)), ((0, 0), ("A", 0), (0, 1), ("B", 1)))
    settings = {"template": template, "roles": {"eos": 0, "mask": 2}, **settings}
    return BPE.from_lists([*ends, *texts[::-1]], merges, pattern=pattern, added=added, **settings)


FOREIGN = foreign()
PIECES = ["# the", "##the", "##a", "th", "##e", "the", "[", "]", "cls", "sep", "don", "t", "'", "!",
          "##s", ",", "un", "##aff", "##able", "中", "n't", "σ"]
ENDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece(**settings: object) -> WordPiece:
    added = {name: Added(i) for i, name in enumerate(ENDS)}
    return WordPiece([*ENDS, *PIECES], added=added, template=around(2, 3), **settings)


BERT = wordpiece()


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=tricky)
def test_any_text_comes_back_from_any_vocabulary(pattern: str, text: str) -> None:
    bpe = foreign(pattern)
    text = text.replace("<", "")  # the others take white space with them
    assert bpe.decode(bpe.encode(text)) == text
    assert not {*bpe.encode(text).tolist()} & {0, 1, 2, 3}


@given(few_letters)
def test_tokens_and_merges_by_name_are_those_by_id(text: str) -> None:
    lists = BPE.from_lists(letters(SMALL), [], pattern="minilora")
    assert lists.tokens == SMALL.tokens and lists.merges == [] != SMALL.merges
    mirrored = foreign("minilora")
    last = mirrored.vocab_size - 1
    assert mirrored.encode(text).tolist() == [last - i for i in SMALL.encode(text).tolist()]


def test_the_letters_of_bytes_are_those_of_gpt2() -> None:
    assert "".join(LETTER[b] for b in " \n!~\x7f\xa0\xadÿ".encode("latin-1")) == "ĠĊ!~ġłŃÿ"
    assert len(set(LETTER)) == 256


def test_a_word_that_is_a_token_is_kept_whole_only_where_asked() -> None:
    tokens = [*LETTER, "ab", "abc"]
    for whole, ids in ((False, [256, 99]), (True, [257])):
        bpe = BPE.from_lists(tokens, ["a b"], whole_words=whole)
        assert bpe.encode("abc").tolist() == ids


def test_a_composed_letter_is_encoded_where_asked() -> None:
    plain, composed = BPE.from_lists(LETTER, []), BPE.from_lists(LETTER, [], nfc=True)
    assert composed.encode("e\u0301").tolist() == plain.encode("é").tolist()
    assert plain.decode(plain.encode("e\u0301")) == "e\u0301"


def test_a_byte_without_a_token_is_an_error_that_names_it() -> None:
    bpe = BPE.from_lists(["a", "b"], [])
    assert bpe.encode("aab").tolist() == [0, 0, 1]
    with pytest.raises(ValueError, match=r"'é' has the byte 0xc3, .* no token"):
        bpe.encode("é")


@pytest.mark.parametrize("tokens, merges, words", [
    (["a", "b b"], [], r"token 1, 'b b', has ' ', which stands for no byte: give it as an added"),
    (["a", "a"], [], r"tokens 0 and 1 are both b'a'"),
    (["a", "b"], ["a b"], r"merge 0 joins to b'ab', which is no token"),
    (["a", "aa"], ["a c"], r"merge 0 joins 'c', which is no token"),
    (["a", "aa"], ["a a", "a a"], r"merges 0 and 1 both join \(0, 0\)"),
    (["a", None], [], r"token 1 must be a str, not None"),
    (["a", "aa"], ["aa"], r"merge 0 must be two tokens, not the str 'aa'"),
    (["a", "aa"], [["a", 0]], r"merge 0 must be two tokens, not the list"),
    (["a", "aa"], [7], r"merge 0 must be two tokens, not 7"),
])
def test_lists_that_do_not_fit_are_an_error(tokens: list, merges: list, words: str) -> None:
    with pytest.raises(ValueError, match=f"^BPE: {words}"):
        BPE.from_lists(tokens, merges)


def test_added_tokens_and_roles_are_inside_the_vocabulary() -> None:
    for wrong in ({"added": {"<s>": Added(2)}}, {"roles": {"eos": -1}}, {"roles": {"eos": True}},
                  {"template": Template(((9, 0), ("A", 0)))}):
        with pytest.raises(ValueError, match=r"^BPE: id .* is outside the vocabulary of 2"):
            BPE.from_lists(["a", "b"], [], **wrong)
    with pytest.raises(ValueError, match="'' cannot be an added token"):
        BPE.from_lists(["a", "b"], [], added={"": Added(0)})
    with pytest.raises(ValueError, match=r"pattern must be one of minilora, gpt-2, .* not 'gpt2'"):
        BPE.from_lists(["a", "b"], [], pattern="gpt2")


# Special tokens


def test_special_tokens_are_special_only_where_asked() -> None:
    text = "to<|end|>be"
    ordinary = FOREIGN.encode(text)
    assert 0 not in ordinary and FOREIGN.decode(ordinary) == text
    for allowed in ("all", {"<|end|>"}, ["<|end|>", "<mask>"]):
        ids = FOREIGN.encode(text, allowed_special=allowed).tolist()
        assert ids == [*FOREIGN.encode("to"), 0, *FOREIGN.encode("be")]
        assert FOREIGN.decode(ids) == text and FOREIGN.decode(ids, skip_special=True) == "tobe"
    assert np.array_equal(FOREIGN.encode(text, allowed_special={"<mask>"}), ordinary)
    with pytest.raises(ValueError, match=r"'<end>' is not a special token here: they are <\|end"):
        FOREIGN.encode(text, allowed_special={"<end>"})
    with pytest.raises(ValueError, match="'<tool>' is not a special token"):
        FOREIGN.encode(text, allowed_special={"<tool>"})
    with pytest.raises(ValueError, match="allowed_special must be \"all\" or a collection"):
        FOREIGN.encode(text, allowed_special="<|end|>")


def test_the_longest_added_token_wins_and_white_space_goes_with_it() -> None:
    be = FOREIGN.encode("be").tolist()
    assert FOREIGN.encode("<|end|>ing", allowed_special="all").tolist() == [1]
    assert FOREIGN.encode("be \n<mask>be", allowed_special="all").tolist() == [*be, 2, *be]
    assert FOREIGN.encode("be<tool> \nbe").tolist() == [*be, 3, *be]
    assert FOREIGN.encode("<tool> <mask>", allowed_special="all").tolist() == [3, 2]
    assert FOREIGN.encode("be<tool>", allowed_special=()).tolist() == [*be, 3]


def test_tokens_around_one_text_and_around_two() -> None:
    a, b = FOREIGN.encode("to be"), FOREIGN.encode("or not")
    assert np.array_equal(FOREIGN.encode("to be", add_special=True), [0, *a])
    ids, types = FOREIGN.with_special(a, b)
    assert np.array_equal(ids, [0, *a, 0, *b]) and ids.dtype == types.dtype == np.int32
    assert np.array_equal(types, [0] * (1 + len(a)) + [1] * (1 + len(b)))
    for other, kinds in ((None, [0, 0, 0]), ([6], [0, 0, 0, 1, 1])):
        ids, types = BERT.with_special([5], other)
        assert ids.tolist() == [2, 5, 3] + [6, 3] * (other is not None)
        assert types.tolist() == kinds
    ids, types = SMALL.with_special([1], [2, 3])
    assert ids.tolist() == [1, 2, 3] and types.tolist() == [0, 1, 1]
    with pytest.raises(ValueError, match=r"with_special: id 999 is outside"):
        SMALL.with_special([999])


@given(st.lists(st.integers(0, FOREIGN.vocab_size - 1)), st.booleans())
def test_a_stream_has_the_same_text_as_soon_as_its_letters_are_whole(ids: list, skip: bool) -> None:
    parts = list(FOREIGN.stream(iter(ids), skip_special=skip))
    assert "".join(parts) == FOREIGN.decode(ids, skip_special=skip)
    if not skip:
        content = b"".join(FOREIGN.tokens[i] for i in ids)
        assert "".join(parts) == content.decode("utf-8", "replace")


def test_a_stream_holds_back_an_incomplete_letter_and_waits_for_no_later_id() -> None:
    ids = SMALL.encode("né").tolist()
    asked = list[int]()
    stream = SMALL.stream(asked.append(i) or i for i in [*ids, 0xE2])
    for text, count in (("n", 1), ("", 2), ("é", 3), ("", 4), ("\ufffd", 4)):
        assert next(stream) == text and len(asked) == count
    with pytest.raises(ValueError, match=r"BPE.stream: id 9999 is outside"):
        list(SMALL.stream([9999]))
    with pytest.raises(TypeError, match=r"BPE.stream: ids must be integers, not float64"):
        list(SMALL.stream([0.5]))


# WordPiece


@pytest.mark.parametrize("text, tokens", [
    ("unaffable", ["un", "##aff", "##able"]), ("UN the", ["un", "the"]), ("thé", ["the"]),
    ("thes", ["the", "##s"]), ("thex", ["[UNK]"]), ("th\u0000e \ufffd\u200bthe", ["the", "the"]),
    ("don't!", ["don", "'", "t", "!"]), ("the中the", ["the", "中", "the"]), ("t" * 101, ["[UNK]"]),
    ("th,\tthe\u3000the", ["th", ",", "the", "the"]), ("[CLS] cls", ["[", "cls", "]", "cls"]),
    ("Σ thΣ", ["σ", "[UNK]"]), ("", []), (" \n", []),
])
def test_words_are_cut_at_the_longest_token(text: str, tokens: list[str]) -> None:
    assert [BERT.tokens[i] for i in BERT.encode(text)] == tokens


def test_the_settings_of_wordpiece() -> None:
    def of(text: str, **settings: object) -> list[str]:
        tokenizer = wordpiece(**settings)
        return [tokenizer.tokens[i] for i in tokenizer.encode(text, allowed_special="all")]

    assert of("The thé [SEP]", lowercase=False) == ["[UNK]", "[UNK]", "[SEP]"]
    assert of("thé", lowercase=False, strip_accents=True) == of("THÉ") == ["the"]
    assert of("thé the", strip_accents=False) == ["[UNK]", "the"]
    assert of("the中", space_chinese=False) == ["[UNK]"]
    assert of("xyz", unknown="[MASK]") == ["[MASK]"]


def test_characters_at_the_edges_of_what_bert_knows() -> None:
    assert BERT._words("a\U0002b820b") == ["a\U0002b820b"]  # the library begins this range later
    assert BERT._words("a\U0002b920b") == ["a", "\U0002b920", "b"]
    assert BERT._words("a\u0903\u0301b") == ["a\u0903b"]  # a spacing mark is no accent
    assert BERT._words("a\u00adb\u20acc$d") == ["ab\u20acc", "$", "d"]  # € is no punctuation


def test_a_word_has_at_most_100_letters() -> None:
    tokenizer = WordPiece(["a", "##a", "[UNK]"])
    assert tokenizer.encode("a" * 100).tolist() == [0] + [1] * 99
    assert tokenizer.encode("a" * 101).tolist() == [2]


def test_a_special_token_is_no_word() -> None:
    tokenizer = WordPiece(["a", "##a", "[UNK]", "aa"], added={"aa": Added(3)})
    assert tokenizer.encode("aa aaa").tolist() == [0, 1, 0, 1, 1]
    assert tokenizer.encode("aa a", allowed_special="all").tolist() == [3, 0]


def test_pieces_are_joined_to_words() -> None:
    assert BERT.decode(BERT.encode("unaffable, the don!")) == "unaffable, the don!"
    assert BERT.decode(BERT.encode("the", add_special=True)) == "[CLS] the [SEP]"
    assert BERT.decode(BERT.encode("the", add_special=True), skip_special=True) == "the"
    ids = [BERT.tokens.index(token) for token in ("##the", "##a", "n't", "n't")]
    assert BERT.decode(ids) == "##thean'tn't" == "".join(BERT.stream(ids))


@pytest.mark.parametrize("tokens, words", [
    (["a", "a", "[UNK]"], "tokens 0 and 1 are both 'a'"),
    (["a"], r"'\[UNK\]', for unknown words,"),
    (["[UNK]", 3], "token 1 must be a str, not 3"),
])
def test_a_vocabulary_of_pieces_that_does_not_fit_is_an_error(tokens: list, words: str) -> None:
    with pytest.raises(ValueError, match=f"^WordPiece: {words}"):
        WordPiece(tokens)


@given(tricky)
def test_any_text_has_pieces(text: str) -> None:
    assert BERT.decode(BERT.encode(text)) == "".join(BERT.stream(BERT.encode(text)))
    again = pickle.loads(pickle.dumps(BERT))
    assert np.array_equal(again.encode(text), copy.deepcopy(BERT).encode(text))
    with pytest.raises(ValueError, match=r"WordPiece.encode: text has a lone surrogate, U\+D834"):
        BERT.encode(text + "\ud834")
