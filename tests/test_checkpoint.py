"""Files: all of it or nothing, the same bits back, and never a pickle (minilora.checkpoint)."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, same_bytes, seeds

from minilora import checkpoint

DTYPES = ["float16", "float32", "float64", "int64", "uint8", "bool"]
texts = st.text(max_size=8)
numbers = st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    made = (normal(draw(seeds), *shape) * 9).astype(draw(st.sampled_from(DTYPES)))
    return made.T if draw(st.booleans()) else made


names = st.from_regex(r"[a-z]{1,8}(\.[0-9WAb]{1,3}){1,3}", fullmatch=True)


@pytest.fixture
def kept(tmp_path):
    """A file that is there already, with what it holds."""
    path = tmp_path / "kept.npz"
    checkpoint.write(path, {"a.W": np.arange(4.0)}, {"kind": "model"})
    return path


@given(st.dictionaries(names, arrays(), max_size=4), st.dictionaries(texts, json_values))
def test_what_is_written_is_read_bit_for_bit(tmp_path_factory, held, meta):
    path = tmp_path_factory.mktemp("files") / "a.npz"
    assert checkpoint.write(str(path), held, meta) == path
    got, told = checkpoint.read(str(path))
    assert list(got) == list(held) and told == meta
    assert all(same_bytes(got[name], np.asarray(held[name])) for name in held)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(kept, error, old, monkeypatch):
    def fails(file, *args, **settings):
        file.write(b"half of it")
        raise error

    if not old:
        kept.unlink()
    before = {path.name: path.read_bytes() for path in kept.parent.iterdir()}
    monkeypatch.setattr(np.lib.format, "write_array", fails)
    with pytest.raises(type(error)):
        checkpoint.write(kept, {"a.W": np.zeros(9)}, {})
    assert {path.name: path.read_bytes() for path in kept.parent.iterdir()} == before


def test_the_same_content_makes_the_same_bytes(kept, monkeypatch):
    import time

    before = kept.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    checkpoint.write(kept, {"a.W": np.arange(4.0)}, {"kind": "model"})
    assert kept.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_are_not_finite_are_not_written(kept, value, dtype):
    before, array = kept.read_bytes(), np.zeros((2, 3), dtype)
    array[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"kept\.npz is not written: a\.B holds"):
        checkpoint.write(kept, {"a.A": np.zeros(2), "a.B": array}, {})
    with pytest.raises(ValueError, match="not written: its meta"):
        checkpoint.write(kept, {}, {"loss": float(value)})
    with pytest.raises(ValueError, match=r"meta\.json would have .* bytes"):
        checkpoint.write(kept, {}, {"text": "x" * checkpoint.LONGEST_META})
    assert kept.read_bytes() == before and list(kept.parent.iterdir()) == [kept]


def test_a_meta_that_is_no_json_is_refused_before_anything_is_written(kept):
    before = kept.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.write(kept, {}, {"x": {1, 2}})
    assert kept.read_bytes() == before and list(kept.parent.iterdir()) == [kept]


@pytest.mark.parametrize("name", ["a", "a.np", "a.npz.gz", "npz"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        checkpoint.write(tmp_path / name, {}, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere is not a folder: create it first"):
        checkpoint.write(tmp_path / "nowhere" / "a.npz", {}, {})


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "a.npz")


@pytest.mark.parametrize("meta, says", [({"kind": "model"}, "a model"), ({}, "a thing of no kind")])
def test_a_file_of_another_kind_is_refused(tmp_path, meta, says):
    path = checkpoint.write(tmp_path / "a.npz", {}, meta)
    with pytest.raises(ValueError, match=f"holds {says}, not an adapter"):
        checkpoint.read(path, kind="adapter")
    assert checkpoint.read(path, kind=meta.get("kind")) == ({}, meta)


def test_a_pickle_is_never_read(tmp_path):
    bombs = np.array([Path("x"), None], dtype=object)
    np.savez(tmp_path / "a.npz", **{"a.W": bombs, checkpoint.META: np.frombuffer(b"{}", np.uint8)})
    with pytest.raises(ValueError, match="damaged: a.W is not an array of plain numbers"):
        checkpoint.read(tmp_path / "a.npz")


def test_a_pickle_is_never_written(tmp_path):
    with pytest.raises((ValueError, TypeError)):
        checkpoint.write(tmp_path / "a.npz", {"a.W": np.array([{}], dtype=object)}, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_anywhere_is_refused(kept):
    whole = kept.read_bytes()
    for size in range(len(whole)):
        kept.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"kept\.npz is not a minilora file, or it is damaged"):
            checkpoint.read(kept)


@given(seeds, st.integers(0, 200))
def test_garbage_is_refused(tmp_path_factory, seed, size):
    path = tmp_path_factory.mktemp("files") / "a.npz"
    for head in (b"", b"PK\3\4", b"\x80\x04"):
        path.write_bytes(head + np.random.default_rng(seed).bytes(size))
        with pytest.raises(ValueError, match="not a minilora file, or it is damaged"):
            checkpoint.read(path)


def test_an_npz_of_somebody_else_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a minilora file"):
        checkpoint.read(tmp_path / "a.npz")


def test_a_flipped_bit_in_the_numbers_is_noticed(kept):
    whole = kept.read_bytes()
    numbers = np.arange(4.0).tobytes()
    start = whole.index(numbers)
    for bit in range(8 * len(numbers)):
        damaged = bytearray(whole)
        damaged[start + bit // 8] ^= 1 << bit % 8
        kept.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.read(kept)


@pytest.mark.parametrize("fault", ["npy", "meta", "method"])
def test_whatever_else_is_wrong_is_a_value_error(kept, fault):
    if fault == "npy":
        with kept.open("wb") as file:
            np.save(file, np.zeros(3))
    elif fault == "meta":
        np.savez(kept, **{checkpoint.META: np.frombuffer(b"[1]", np.uint8)})
    else:  # a compression method that does not exist
        damaged = bytearray(kept.read_bytes())
        damaged[damaged.index(b"PK\1\2") + 10] = 99
        kept.write_bytes(damaged)
    with pytest.raises(ValueError, match="not a minilora file"):
        checkpoint.read(kept, kind="model")


@given(seeds, st.integers(1, 5), st.sampled_from(["float16", "float32", "float64"]), st.data())
def test_the_fingerprint_changes_with_any_bit_and_any_order(seed, n, dtype, data):
    first, second = normal(seed, n, 2, dtype=dtype), normal(seed + 1, 3, dtype=dtype)
    mark = checkpoint.fingerprint([first, second])
    assert len(mark) == 8 and int(mark, 16) >= 0
    assert mark == checkpoint.fingerprint(iter([first.copy(), second]))
    assert mark == checkpoint.fingerprint([np.asfortranarray(first), second])
    assert mark != checkpoint.fingerprint([second, first])
    which = data.draw(st.sampled_from([0, 1]))
    damaged = bytearray((first, second)[which].tobytes())
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    held = [first, second]
    held[which] = np.frombuffer(damaged, dtype)
    assert mark != checkpoint.fingerprint(held)
