"""The built-in texts and batches: minilora.data."""

from collections import Counter
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.data import BPE, TEXTS, Windows, load_text, sequential, split

sizes = st.integers(1, 6)


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
