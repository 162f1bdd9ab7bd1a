"""checkpoint: all or nothing, the same bits back, and never a pickle."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import normal, same_bytes, seeds

import minilora as ml
from minilora.files import checkpoint
from minilora.files.budget import budget as budget_of
from minilora.state_dict import fill

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
    array = (normal(draw(seeds), *shape) * 9).astype(draw(st.sampled_from(DTYPES)))
    return array.T if draw(st.booleans()) else array


names = st.from_regex(r"[a-z]{1,8}(\.[0-9WAb]{1,3}){1,3}", fullmatch=True)


@pytest.fixture
def existing(tmp_path):
    """An existing file."""
    path = tmp_path / "kept.npz"
    checkpoint.write(path, {"a.W": np.arange(4.0)}, {"kind": "model"})
    return path


@given(st.dictionaries(names, arrays(), max_size=4), st.dictionaries(texts, json_values))
def test_arrays_are_read_back_bit_for_bit(tmp_path_factory, members, meta):
    path = tmp_path_factory.mktemp("files") / "a.npz"
    assert checkpoint.write(str(path), members, meta) == path
    got, facts = checkpoint.read(str(path))
    assert list(got) == list(members) and facts == meta
    assert all(same_bytes(got[name], np.asarray(members[name])) for name in members)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_write_changes_nothing(existing, error, old, monkeypatch):
    def fails(file, *args, **settings):
        file.write(b"half of it")
        raise error

    if not old:
        existing.unlink()
    before = {path.name: path.read_bytes() for path in existing.parent.iterdir()}
    monkeypatch.setattr(np.lib.format, "write_array", fails)
    with pytest.raises(type(error)):
        checkpoint.write(existing, {"a.W": np.zeros(9)}, {})
    assert {path.name: path.read_bytes() for path in existing.parent.iterdir()} == before


def test_equal_content_gives_equal_bytes(existing, monkeypatch):
    import time

    before = existing.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    checkpoint.write(existing, {"a.W": np.arange(4.0)}, {"kind": "model"})
    assert existing.read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numbers_that_are_not_finite_are_not_written(existing, value, dtype):
    before, array = existing.read_bytes(), np.zeros((2, 3), dtype)
    array[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"kept\.npz is not written: a\.B has"):
        checkpoint.write(existing, {"a.A": np.zeros(2), "a.B": array}, {})
    with pytest.raises(ValueError, match="not written: its meta"):
        checkpoint.write(existing, {}, {"loss": float(value)})
    with pytest.raises(ValueError, match=r"meta\.json would have .* bytes"):
        checkpoint.write(existing, {}, {"text": "x" * checkpoint.LONGEST_META})
    assert existing.read_bytes() == before and list(existing.parent.iterdir()) == [existing]


def test_a_meta_that_is_not_json_is_refused_before_anything_is_written(existing):
    before = existing.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.write(existing, {}, {"x": {1, 2}})
    assert existing.read_bytes() == before and list(existing.parent.iterdir()) == [existing]


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


@pytest.mark.parametrize("meta, words", [
    ({"kind": "model"}, "a model"), ({}, "an unknown kind of content"),
])
def test_a_file_of_another_kind_is_refused(tmp_path, meta, words):
    path = checkpoint.write(tmp_path / "a.npz", {}, meta)
    with pytest.raises(ValueError, match=f"holds {words}, not an adapter"):
        checkpoint.read(path, kind="adapter")
    assert checkpoint.read(path, kind=meta.get("kind")) == ({}, meta)


def test_a_pickle_is_never_read(tmp_path):
    bombs = np.array([Path("x"), None], dtype=object)
    np.savez(tmp_path / "a.npz", **{"a.W": bombs, checkpoint.META: np.frombuffer(b"{}", np.uint8)})
    with pytest.raises(ValueError, match=r"damaged: a\.W is not an array of plain numbers"):
        checkpoint.read(tmp_path / "a.npz")


def test_a_pickle_is_never_written(tmp_path):
    with pytest.raises((ValueError, TypeError)):
        checkpoint.write(tmp_path / "a.npz", {"a.W": np.array([{}], dtype=object)}, {})
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_cut_anywhere_is_refused(existing):
    complete = existing.read_bytes()
    for size in range(len(complete)):
        existing.write_bytes(complete[:size])
        with pytest.raises(ValueError, match=r"kept\.npz is not a minilora file, or it is damaged"):
            checkpoint.read(existing)


@given(seeds, st.integers(0, 200))
def test_garbage_is_refused(tmp_path_factory, seed, size):
    path = tmp_path_factory.mktemp("files") / "a.npz"
    for head in (b"", b"PK\3\4", b"\x80\x04"):
        path.write_bytes(head + np.random.default_rng(seed).bytes(size))
        with pytest.raises(ValueError, match="not a minilora file, or it is damaged"):
            checkpoint.read(path)


def test_an_npz_of_another_program_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not a minilora file"):
        checkpoint.read(tmp_path / "a.npz")


def test_a_flipped_bit_in_the_numbers_is_noticed(existing):
    complete = existing.read_bytes()
    numbers = np.arange(4.0).tobytes()
    start = complete.index(numbers)
    for bit in range(8 * len(numbers)):
        damaged = bytearray(complete)
        damaged[start + bit // 8] ^= 1 << bit % 8
        existing.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.read(existing)


@pytest.mark.parametrize("fault", ["npy", "meta", "method"])
def test_any_other_defect_is_a_value_error(existing, fault):
    if fault == "npy":
        with existing.open("wb") as file:
            np.save(file, np.zeros(3))
    elif fault == "meta":
        np.savez(existing, **{checkpoint.META: np.frombuffer(b"[1]", np.uint8)})
    else:  # a compression method that does not exist
        damaged = bytearray(existing.read_bytes())
        damaged[damaged.index(b"PK\1\2") + 10] = 99
        existing.write_bytes(damaged)
    with pytest.raises(ValueError, match="not a minilora file"):
        checkpoint.read(existing, kind="model")


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
    arrays = [first, second]
    arrays[which] = np.frombuffer(damaged, dtype)
    assert mark != checkpoint.fingerprint(arrays)


# Sizes in a file are checked against its bytes before memory is allocated.


def npy(text: bytes, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    head = text.ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + body


def header(descr="<f4", order="False", shape="(2,)") -> bytes:
    return f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()


def zipped(path, meta: str | bytes = "{}", **members) -> Path:
    """Write a file with this JSON and these members, as bytes or as (bytes, compression)."""
    text = meta if isinstance(meta, bytes) else meta.encode()
    meta_member = npy(header("|u1", shape=f"({len(text)},)"), text)
    with zipfile.ZipFile(path, "w") as archive:
        for name, member in {"meta.json": meta_member, **members}.items():
            data, how = member if isinstance(member, tuple) else (member, zipfile.ZIP_STORED)
            archive.writestr(f"{name}.npy", data, compress_type=how)
    return path


LIES = {
    "compressed": ((npy(header(), bytes(8)), zipfile.ZIP_DEFLATED), "x is compressed"),
    "longer": (npy(header(shape="(3,)"), bytes(8)), r"x is \(3,\) of float32, but has"),
    "shorter": (npy(header(shape="(1,)"), bytes(8)), r"x is \(1,\) of float32, but has"),
    "wider": (npy(header("<f8"), bytes(8)), r"x is \(2,\) of float64, but has"),
    "huge": (npy(header(shape="(999999999, 999999999)")), "x is .* but has 128 bytes"),
    "fortran": (npy(header(order="True"), bytes(8)), "x is not an array of plain numbers"),
    "big-endian": (npy(header(">f4"), bytes(8)), "x is not an array of plain numbers"),
    "complex": (npy(header("<c8"), bytes(16)), "x is not an array of plain numbers"),
    "objects": (npy(header("|O"), bytes(16)), "x is not an array of plain numbers"),
    "negative": (npy(header(shape="(-2,)"), bytes(8)), "x is not an array of plain numbers"),
    "evaluated": (npy(b"__import__('os').system('true')"), "x is not an array of plain numbers"),
    "version": (npy(header(), bytes(8), b"\2\0"), "x is not an array of plain numbers"),
    "nothing": (b"", "x is not an array of plain numbers"),
}


@pytest.mark.parametrize("member, words", LIES.values(), ids=LIES)
def test_an_array_with_a_wrong_header_is_refused(tmp_path, member, words):
    path = zipped(tmp_path / "a.npz", x=member)
    with pytest.raises(ValueError, match=rf"a\.npz is not a minilora file, or .* damaged: {words}"):
        checkpoint.read(path)
    right = zipped(tmp_path / "b.npz", x=npy(header(), np.float32([1, 2]).tobytes()))
    assert checkpoint.read(right)[0]["x"].tolist() == [1, 2]


JSON = {
    "nan": ('{"x": NaN}', "NaN is not a finite number"),
    "infinity": ('{"x": -Infinity}', "-Infinity is not a finite number"),
    "beyond": ('{"x": 1e999}', "1e999 is not a finite number"),
    "digits": (f'{{"x": {"7" * 41}}}', "a number has 41 digits"),
    "twice": ('{"x": 1, "y": {"z": 1, "z": 2}}', "a name appears twice"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "list": ("[[]]", r"meta\.json is the list \[\[\]\], not an object"),
    "no text": (b"\xff{}", "utf-8"),
    "long": ('"' + "x" * checkpoint.LONGEST_META + '"', r"not up to 1,048,576 bytes"),
}


@pytest.mark.parametrize("meta, words", JSON.values(), ids=JSON)
def test_invalid_json_is_refused(tmp_path, meta, words):
    path = zipped(tmp_path / "a.npz", meta)
    with pytest.raises(ValueError, match=rf"a\.npz is not a minilora file, .*{words}"):
        checkpoint.read(path)


def test_the_longest_json_is_read(tmp_path):
    text = json.dumps({"x": "y" * (checkpoint.LONGEST_META - 9)})
    assert len(text) == checkpoint.LONGEST_META
    assert len(checkpoint.read(zipped(tmp_path / "a.npz", text))[1]["x"]) > 1_000_000


@pytest.mark.parametrize("more", [0, 1])
def test_json_can_be_written_up_to_the_longest_that_is_read(tmp_path, more):
    path, room = tmp_path / "a.npz", checkpoint.LONGEST_META + more
    head = {"format": checkpoint.FORMAT, "made_by": f"minilora {ml.__version__}", "x": ""}
    meta = {"x": "y" * (room - len(json.dumps(head)))}
    if more:
        with pytest.raises(ValueError, match=f"would have {room:,} bytes, and at most"):
            checkpoint.write(path, {}, meta)
    else:
        assert checkpoint.read(checkpoint.write(path, {}, meta))[1]["x"] == meta["x"]


def test_members_that_share_their_bytes_are_refused(tmp_path):
    """A small file whose list names the same bytes many times would need much memory."""
    body = npy(header(shape="(5000,)"), bytes(20_000))
    path = zipped(tmp_path / "a.npz", x=body, y=body, z=body)
    complete = path.read_bytes()
    first, second = (complete.index(b"PK\3\4\x14\0\0\0\0\0", i) for i in (0, 300))
    assert first == 0 and checkpoint.read(path)[0].keys() == {"x", "y", "z"}
    data = bytearray(complete[: second + 30 + 5 + len(body)])  # meta and x alone
    at, listed = len(data), complete[complete.index(b"PK\1\2") : complete.rfind(b"PK\5\6")]
    entries = [bytearray(b"PK\1\2" + e) for e in listed.split(b"PK\1\2")[1:]]
    for entry in entries[1:]:
        entry[42:46] = second.to_bytes(4, "little")
    data += b"".join(entries)
    end = bytearray(complete[complete.rfind(b"PK\5\6") :])
    end[16:20] = at.to_bytes(4, "little")
    path.write_bytes(data + end)
    with pytest.raises(ValueError, match="its arrays overlap"):
        checkpoint.read(path)


@pytest.mark.parametrize("limit, words", [("MOST_MEMBERS", "4 arrays"), ("LONGEST_LIST", "bytes")])
def test_a_list_of_more_arrays_than_any_model_has_is_not_read(tmp_path, limit, words, monkeypatch):
    path = zipped(tmp_path / "a.npz", **{n: npy(header(), bytes(8)) for n in "xyz"})
    listed = path.read_bytes()[-10:-6]
    size = {"MOST_MEMBERS": 4, "LONGEST_LIST": int.from_bytes(listed, "little")}[limit]
    monkeypatch.setattr(checkpoint, limit, size)
    checkpoint.read(path)
    monkeypatch.setattr(checkpoint, limit, size - 1)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(ValueError, match=rf"it lists .*{words}.*, more than any model has"):
        checkpoint.read(path)


def test_a_long_list_in_zip64_form_is_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)  # so that zipfile writes ZIP64
    path = zipped(tmp_path / "a.npz", **{n: npy(header(), bytes(8)) for n in "xyz"})
    complete = path.read_bytes()
    assert complete[-42:-38] == b"PK\6\7" and len(checkpoint.read(path)[0]) == 3
    path.write_bytes(complete[:-14] + b"\1\0\1\0" + complete[-10:])  # the short form says 1
    monkeypatch.setattr(checkpoint, "MOST_MEMBERS", 3)
    with pytest.raises(ValueError, match="it lists 4 arrays"):
        checkpoint.read(path)
    path.write_bytes(complete[:-98] + b"PK\6\5" + complete[-94:])
    with pytest.raises(ValueError, match="not where it ends"):
        checkpoint.read(path)
    path.write_bytes(complete[:-34] + b"\0" * 8 + complete[-26:])
    with pytest.raises(ValueError, match="not where it ends"):
        checkpoint.read(path)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        checkpoint.read(tmp_path)


def test_the_format_is_stored_and_a_newer_one_is_refused(existing):
    arrays, meta = checkpoint.read(existing)
    with zipfile.ZipFile(existing) as archive:
        assert f'"format": {checkpoint.FORMAT}'.encode() in archive.read("meta.json.npy")
    for version in (checkpoint.FORMAT + 1, 0, "1", None, 1.5, [1]):
        checkpoint.write(existing, arrays, {**meta, "format": version})
        with pytest.raises(ValueError, match=r"kept\.npz: it has format .* use a newer one"):
            checkpoint.read(existing)
    assert checkpoint.read(zipped(existing, "{}"))[1] == {}  # without a format: version 1


# Reading arrays and facts.


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.npz"
    members = {"W": np.ones((2, 3), "float16"), "n": np.arange(3), "b": np.zeros(2, "bool")}
    checkpoint.write(path, members, {"kind": "x", "r": 2, "of": {"alpha": 1.5}, "no": None})
    with checkpoint.opened(path, "x") as opened:
        yield opened


def test_a_reader_must_name_every_array(file):
    assert file.shapes == {"W": (2, 3), "n": (3,), "b": (2,)}
    wanted = {"W": (2, 3), "n": (3,), "b": (2,)}
    for change, words in (
        ({"more": (1,)}, r"missing \['more'\], unexpected \[\] \(1 and 0"),
        ({"W": (3, 2)}, r"W is \(2, 3\), not \(3, 2\)"), ({}, "n is int64, not floats"),
    ):
        with pytest.raises(ValueError, match=rf"a\.npz: .*{words}"):
            file.arrays(wanted | change)
    with pytest.raises(ValueError, match=r"missing \[\], unexpected \['b', 'n'\]"):
        file.arrays({"W": (2, 3)})


def test_arrays_that_fit_are_returned_and_must_be_finite(tmp_path):
    path = checkpoint.write(tmp_path / "a.npz", {"W": np.ones(3), "n": np.arange(3.0)}, {})
    with checkpoint.opened(path) as file:
        got = file.arrays({"W": [3], "n": (3,)})
    assert got["W"].tolist() == [1, 1, 1] and got["n"].tolist() == [0, 1, 2]
    for value in (np.nan, np.inf):
        body = npy(header("<f8", shape="(3,)"), np.array([1, value, 2]).tobytes())
        with (
            checkpoint.opened(zipped(path, W=body)) as file,
            pytest.raises(ValueError, match=r"a\.npz: W has numbers that are not finite"),
        ):
            file.arrays({"W": (3,)})


def test_facts_are_checked_for_their_types(file):
    assert file.facts(r=int) == [2] and file.facts("q", {"alpha": 1.5}, alpha=float) == [1.5]
    for wanted, words in (
        ({"s": int}, r"its meta\.json has no 's': another version wrote it"),
        ({"r": float}, r"'r' of its meta\.json is 2, not a float"),
        ({"r": bool}, "not a bool"), ({"no": dict}, "is None, not a dict"),
    ):
        with pytest.raises(ValueError, match=rf"a\.npz: {words}" if "its" in words else words):
            file.facts(**wanted)
    for part in ({}, None, [1]):
        with pytest.raises(ValueError, match=r"a\.npz: its q has no 'alpha'"):
            file.facts("q", part, alpha=float)


@pytest.mark.parametrize("error", [TypeError("t"), ValueError("v"), KeyError("k")])
def test_an_error_in_a_blamed_block_names_the_file(file, error):
    with pytest.raises(ValueError, match=rf"a\.npz: {error.args[0]}$"), file.blamed():
        raise error
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file.path))}: x$"), file.blamed():
        raise file.wrong("x")  # the name is not repeated
    with pytest.raises(RuntimeError), file.blamed():
        raise RuntimeError


def test_a_budget_draws_as_many_zeros_as_the_file_has_numbers(file):
    budget = file.budget()
    drawn = (budget.standard_normal((2, 3)) * 0.02).astype("float16")
    assert not drawn.any() and drawn.dtype == "float16"
    assert budget.uniform(-1, 1, size=4).shape == 4
    budget.standard_normal(1)
    with pytest.raises(ValueError, match="its sizes ask for more numbers than the 11 in it"):
        budget.standard_normal((10**6, 10**6, 10**6))
    with pytest.raises(ValueError, match="its sizes ask for more"):
        file.budget().uniform(-1, 1, (2, 6))
    with pytest.raises(ValueError, match="more numbers than the 3 in it"):
        budget_of(3, spare=2).standard_normal(6)
    budget_of(3, spare=2).standard_normal(5)


# All arrays are copied, or none.


def test_arrays_that_do_not_fit_change_nothing(existing):
    own = {
        "a": ml.backend.asarray(np.ones(2, "float32")),
        "b": ml.backend.asarray(np.zeros((1, 2))),
    }
    good = {"a": np.array([3.0, 4.0]), "b": np.array([[5.0, 6.0]])}
    for change, error, words in (
        ({"b": np.zeros(2)}, ValueError, r"me: b is \(1, 2\) here, \(2,\) in the state"),
        ({"b": np.array([[1, np.nan]])}, ValueError, "me: b has numbers that are not finite"),
        ({"a": np.array([1, 1e300])}, ValueError, "me: a has numbers that are beyond float32"),
        ({"b": np.array([["x", "y"]])}, ValueError, "me: b must be numbers, not"),
        ({"b": np.array([[1j, 2]])}, ValueError, "me: b must be numbers, not"),
        ({"c": np.zeros(1)}, KeyError, r"me: missing \[\], unexpected \['c'\]"),
    ):
        with pytest.raises(error, match=words):
            fill(own, good | change, "me")
        assert ml.asnumpy(own["a"]).tolist() == [1, 1] and not ml.asnumpy(own["b"]).any()
    with pytest.raises(KeyError, match=r"me: missing \['b'\]"):
        fill(own, {"a": good["a"]}, "me")
    for state in (existing, [1], None):
        with pytest.raises(TypeError, match="me: it takes arrays by name, not"):
            fill(own, state, "me")
    fill(own, {"a": good["a"], "c": 1}, "me", strict=False)
    assert ml.asnumpy(own["a"]).tolist() == [3, 4] and not ml.asnumpy(own["b"]).any()
    fill(own, good | {"b": [[7, 8]]}, "me")
    assert ml.asnumpy(own["b"]).tolist() == [[7, 8]] and str(own["a"].dtype) == "float32"
