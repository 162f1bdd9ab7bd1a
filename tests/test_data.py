"""The built-in texts, the tokenizer, and batches: minilora.data."""

import copy
import math
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import BPE, TEXTS, Windows, load_text, sequential, split
from minilora.data.tokenizer import LETTERS, ROOM, WORD

any_text = st.text(st.characters(exclude_categories=["Cs"]))
few_letters = st.one_of(  # so that pairs repeat and are merged
    st.text("abc ", max_size=80), st.text("ab 'A1.\n\té", max_size=80)
)
sizes = st.integers(1, 6)

SAMPLE = (
    "To be, or not to be: that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"
    "The slings and arrows of outrageous fortune,\nOr to take arms against a sea of troubles,\n"
)
SMALL = BPE.train(SAMPLE * 3, 400)


# The tokenizer


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
        piece = b"".join(bpe._bytes[j] for j in bpe.merges[i - 256])
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
    monkeypatch.setattr("minilora.data.tokenizer.WORDS", 3)
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
    assert sum(len(full._bytes[i]) for i in range(256, full.vocab_size)) == ROOM
    with pytest.raises(ValueError, match="the tokens up to 280 "):
        BPE([*full.merges, (99, 99)])


# Batches


@given(st.integers(2, 60), sizes, sizes, st.integers(0, 9), st.integers(0, 10**6), st.data())
def test_windows(n: int, batch: int, tokens: int, seed: int, i: int, data: st.DataObject) -> None:
    tokens = min(tokens, n - 1)
    ids = np.arange(1000, 1000 + n, dtype=np.int32)
    inputs, targets = Windows(ids, batch, tokens, seed)[i]
    assert inputs.shape == targets.shape == (batch, tokens)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(targets, inputs + 1)
    np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(tokens))
    assert inputs.min() >= 1000 and targets.max() <= 1000 + n - 1
    again = Windows(ids.tolist(), batch, tokens, seed)
    again[data.draw(st.integers(0, 9))]  # batch i does not depend on what was drawn before
    np.testing.assert_array_equal(again[np.int64(i)][0], inputs)


def test_windows_start_everywhere_and_differ_by_batch_and_seed() -> None:
    ids = np.arange(12)
    starts = Counter(Windows(ids, 2000, 4)[0][0][:, 0].tolist())
    assert sorted(starts) == list(range(8)) and min(starts.values()) > 150
    first = Windows(ids, 50, 4)
    assert (first[0][0] != first[1][0]).any()
    assert (first[0][0] != Windows(ids, 50, 4, seed=1)[0][0]).any()
    expected = np.random.default_rng([3, 5]).integers(0, 8, size=6)
    np.testing.assert_array_equal(Windows(ids, 6, 4, seed=3)[5][0][:, 0], expected)


def test_windows_have_no_length_and_no_last_batch() -> None:
    windows = Windows(np.arange(9), 2, 3)
    with pytest.raises(TypeError):
        len(windows)  # type: ignore[arg-type]
    with pytest.raises(IndexError, match="-1"):
        windows[-1]
    for wrong in (slice(0, 2), 1.0, "a"):
        with pytest.raises(TypeError, match=type(wrong).__name__):
            windows[wrong]  # type: ignore[index]


@given(st.integers(2, 80), sizes, sizes)
def test_sequential_predicts_each_token_once(n: int, batch: int, tokens: int) -> None:
    tokens = min(tokens, n - 1)
    batches = sequential(np.arange(n, dtype=np.uint16), batch, tokens)
    full = (n - 1) // tokens
    predicted = np.concatenate([targets.ravel() for _, targets in batches])
    np.testing.assert_array_equal(predicted, np.arange(1, full * tokens + 1))
    assert sum(len(inputs) for inputs, _ in batches) == full
    assert all(len(inputs) == batch for inputs, _ in batches[:-1]) and len(batches[-1][0]) > 0
    for inputs, targets in batches:
        assert inputs.shape == targets.shape and inputs.shape[1] == tokens
        assert inputs.dtype == targets.dtype == np.int64
        np.testing.assert_array_equal(targets, inputs + 1)


@pytest.mark.parametrize("make", [Windows, sequential])
def test_streams_without_a_window(make: type[Windows]) -> None:
    with pytest.raises(ValueError, match=r"8 ids .* 8 tokens.* 9: .*at most 7"):
        make(np.arange(8), 2, 8)
    with pytest.raises(ValueError, match=r"0 ids"):
        make(np.arange(0), 2, 8)
    with pytest.raises(ValueError, match=rf"^{make.__name__}: ids must be .*, not float64 \(20,\)"):
        make(np.ones(20), 2, 8)
    with pytest.raises(ValueError, match=r"tokenizer\.encode\(text\) .*, not the str 'To be'"):
        make("To be", 2, 8)
    with pytest.raises(ValueError, match=r": 0 ids are too few .* needs 9: use a longer text$"):
        make([], 2, 8)
    with pytest.raises(ValueError, match=r": 1 ids are too few .* needs 2: use a longer text$"):
        make([5], 2, 1)
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        make(np.ones((4, 5), int), 2, 3)
    for bad in (0, -1, 2.5, True, "2", None):
        for name, sizes in (("batch", (bad, 3)), ("tokens", (2, bad))):
            words = rf"^{make.__name__}: {name} must be an integer >= 1, not .*{bad}"
            with pytest.raises(ValueError, match=words):
                make(np.arange(20), *sizes)


@pytest.mark.parametrize("seed", [-1, 1.5, None, True])
def test_a_seed_of_windows_is_an_integer(seed: int) -> None:
    with pytest.raises(
        ValueError, match=f"^Windows: seed must be an integer >= 0, not .*{seed}"
    ):
        Windows(np.arange(20), 2, 3, seed=seed)


# Texts


@given(st.text("ab\n", min_size=2, max_size=60), st.floats(0.01, 0.99))
def test_split_is_a_partition(text: str, held_out: float) -> None:
    first, last = split(text, held_out)
    assert first + last == text and first and last
    assert len(last) >= int(held_out * len(text))
    at = max(int(len(text) * (1 - held_out)), 1)
    if "\n" in text[:at]:
        assert first.endswith("\n") and "\n" not in text[len(first) : at]
    else:
        assert len(first) == min(at, len(text) - 1)


def test_split_errors() -> None:
    for fraction in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(
            ValueError, match=rf"split: held_out must be in \(0, 1\), not {fraction}"
        ):
            split("some text", fraction)
    with pytest.raises(TypeError, match="split: text must be a str, not None"):
        split(None)  # type: ignore[arg-type]
    for text in ("", "a"):
        with pytest.raises(ValueError, match=f"{len(text)} characters"):
            split(text)


BOUNDS = {"plays": (4_500_000, 5_500_000), "kjv": (300_000, 500_000), "devil": (300_000, 500_000)}
MARKS = ["gutenberg", "copyright", " etext", "http", "wiretap", "&amp;"]


@pytest.mark.parametrize("name", TEXTS)
def test_text_is_clean(name: str) -> None:
    text = load_text(name)
    low, high = BOUNDS[name]
    assert low < len(text) < high
    assert text.isascii()
    assert not set(text) & set("\r\t\f<>{}|\\_~^@*\x00"), "markup or control characters"
    assert text.endswith("\n") and not text.startswith("\n") and "\n\n\n\n" not in text
    assert not any(line != line.rstrip() for line in text.split("\n"))
    for mark in MARKS:
        assert mark not in text.lower(), mark
    assert sum(c.isalpha() or c in " \n" for c in text) > 0.9 * len(text)
    _, last = split(text)
    assert 0.09 < len(last) / len(text) < 0.15


@pytest.mark.parametrize(
    "name, passages",
    [
        (
            "plays",
            ["HAMLET.\nTo be, or not to be,--that is the question:", "\n\nMACBETH\n\nACT I.\n"],
        ),
        ("plays", ["\n\nROMEO AND JULIET\n", "\n\n[Exeunt.]\n", "JULIET.\nO Romeo, Romeo!"]),
        (
            "kjv",
            ["GENESIS\n\nChapter 1\nIn the beginning God created the heaven and the earth. And"],
        ),
        ("kjv", ["\n\nEXODUS\n\nChapter 1\nNow these are the names", "Thou shalt not kill."]),
        ("devil", ["\n\nCYNIC, n. A blackguard whose faulty vision sees things as they are"]),
    ],
)
def test_text_has(name: str, passages: list[str]) -> None:
    for passage in passages:
        assert passage in load_text(name)


def test_plays_have_the_same_layout() -> None:
    text = load_text("plays")
    assert text.count("\n\nACT I.\n") == 37
    assert text.count("[") == text.count("]") > 5000
    speakers = Counter(block.split("\n")[0] for block in text.split("\n\n") if "\n" in block)
    assert speakers["HAMLET."] > 300 and speakers["LEAR."] > 150 and speakers["FALSTAFF."] > 400


def test_load_text_names_the_texts() -> None:
    with pytest.raises(ValueError, match=r"'bible'.*plays, kjv, devil"):
        load_text("bible")


def test_each_text_has_its_source() -> None:
    folder = files("minilora.data").joinpath("texts")
    sources = folder.joinpath("SOURCES.md").read_text(encoding="utf-8")
    headings = {line[3:] for line in sources.splitlines() if line.startswith("## ")}
    assert headings == {file.name for file in folder.iterdir()} - {"SOURCES.md"}
    assert {heading.split(".")[0] for heading in headings} == set(TEXTS)


def test_built_in_text_round_trips() -> None:
    text = load_text("devil")
    bpe = BPE.train(text[:50_000], 400)
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert len(text) / len(ids) > 1.5
