"""files/safetensors.py: what is written is read, by us and by the library; all else is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from strategies import same_bytes

from minilora.accounting.traced import meter
from minilora.files import safetensors
from minilora.files.safetensors import PIECE, opened, write

pytestmark = pytest.mark.usefixtures("numpy_only")
KINDS = sorted({*safetensors.DTYPES.values()})
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
names = st.text(st.characters(codec="utf-8"), max_size=8).filter(str.isprintable)


@st.composite
def tensors(draw):
    """Arrays of any dtype, by name; some are not in C order, some not little endian."""
    arrays = {}
    for name in draw(st.sets(names.filter(lambda name: name != "__metadata__"), max_size=4)):
        dtype = np.dtype(draw(st.sampled_from(KINDS)))
        elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
        x = draw(npst.arrays(dtype, draw(shapes), elements=npst.from_dtype(dtype, **elements)))
        arrays[name] = draw(st.sampled_from([x, x.T, x.astype(dtype.newbyteorder(">"))]))
    return arrays


def contents(path):
    with opened(path) as file:
        return {name: file.array(name) for name in file.tensors}


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        assert same_bytes(ours[name], np.asarray(x).astype(ours[name].dtype))
        assert ours[name].dtype == x.dtype.newbyteorder("<")


@given(arrays=tensors())
def test_what_is_written_is_read(tmp_path, arrays):
    path = tmp_path / "a.safetensors"
    write(path, arrays)
    equal(contents(path), arrays)
    before = path.read_bytes()
    write(path, dict(reversed(arrays.items())))
    assert path.read_bytes() == before
    with opened(path) as file:
        for name, (_, shape, start) in file.tensors.items():
            assert shape == arrays[name].shape and start % arrays[name].dtype.itemsize == 0


@pytest.mark.oracle
@given(arrays=tensors())
def test_the_library_reads_what_is_written_and_writes_what_is_read(tmp_path, arrays):
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "a.safetensors"
    write(path, arrays)
    equal(library.load_file(path), arrays)
    arrays = {name: x.astype(x.dtype.newbyteorder("="), "C") for name, x in arrays.items()}
    library.save_file(arrays, path)
    equal(contents(path), arrays)


def header(path, entries, numbers=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + numbers)


def test_every_bfloat16_is_read_exactly(tmp_path):
    """Sign, exponent and the upper 7 bits of the fraction of float32."""
    bits = np.arange(1 << 16, dtype="<u2")
    path = tmp_path / "a.safetensors"
    header(path, {"x": {"dtype": "BF16", "shape": [256, 256], "data_offsets": [0, 1 << 17]}},
           bits.tobytes())
    x = contents(path)["x"].reshape(-1)
    sign, exponent, fraction = bits >> 15, (bits >> 7) & 255, (bits & 127).astype("f8")
    with np.errstate(over="ignore"):
        value = np.where(exponent > 0, np.ldexp(1 + fraction / 128, exponent.astype(int) - 127),
                         np.ldexp(fraction / 128, -126))
    finite = exponent < 255
    assert np.array_equal(x[finite], np.where(sign, -value, value)[finite])
    assert not np.isfinite(x[~finite]).any()
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(bits.view("<i2").copy()).view(torch.bfloat16).float().numpy()
    assert np.array_equal(x, theirs, equal_nan=True)


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {  # what is wrong -> (header, numbers, a part of the error)
    "no object": ([ENTRY], b"", "header is the list"),
    "no json": (b"{", b"", "its header: "),
    "twice": (b'{"a": 1, "a": 1}', b"", "a name appears twice"),
    "deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "nested too deeply"),
    "number": ({"a": 1}, b"", "a has no dtype"),
    "more": ({"a": {**ENTRY, "x": 1}}, bytes(8), "or more than these"),
    "unprintable": ({"a\n": ENTRY}, bytes(8), "cannot be printed"),
    "dtype": ({"a": {**ENTRY, "dtype": "F8_E4M3"}}, bytes(8), "F8_E4M3"),
    "dtype list": ({"a": {**ENTRY, "dtype": []}}, bytes(8), "dtype"),
    "negative": ({"a": {**ENTRY, "shape": [-2]}}, bytes(8), "shape of a"),
    "true": ({"a": {**ENTRY, "shape": [True, 2]}}, bytes(8), "shape of a"),
    "huge": ({"a": {**ENTRY, "shape": [2**62, 0], "data_offsets": [0, 0]}}, b"", "shape of a"),
    "huge bytes": ({"a": {**ENTRY, "shape": [10**6] * 3}}, bytes(8), "shape of a"),
    "offsets": ({"a": {**ENTRY, "data_offsets": [0]}}, bytes(8), "two places"),
    "backwards": ({"a": {**ENTRY, "data_offsets": [8, 0]}}, bytes(8), "has -8"),
    "size": ({"a": {**ENTRY, "shape": [3]}}, bytes(12), "12 bytes, but has 8"),
    "gap": ({"a": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "gaps"),
    "overlap": ({"a": ENTRY, "b": {**ENTRY, "data_offsets": [4, 12]}}, bytes(12), "overlap"),
    "beyond": ({"a": ENTRY}, bytes(7), "take 8 bytes, but 7 follow"),
    "rest": ({"a": ENTRY}, bytes(9), "take 8 bytes, but 9 follow"),
    "metadata": ({"__metadata__": {"a": 1}}, b"", "metadata"),
    "metadata list": ({"__metadata__": []}, b"", "metadata"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_damaged_header_is_refused_with_the_reason(tmp_path, wrong):
    entries, numbers, reason = BAD[wrong]
    path = tmp_path / "a.safetensors"
    header(path, entries, numbers)
    with pytest.raises(ValueError) as error, opened(path):
        pass
    start = f"{path} is not a safetensors file, or it is damaged: "
    assert str(error.value).startswith(start) and reason in str(error.value)


@pytest.mark.parametrize(("content", "reason"), [
    (b"", "0 bytes"), (bytes(7), "7 bytes"), (b"\xff" * 8, "too few"),
    (b"\x10" + bytes(7), "too few"),
    (b"\0\0\0\2" + bytes(4) + bytes(1 << 25), "33,554,432 bytes, more than any model needs"),
])
def test_an_impossible_length_is_refused(tmp_path, content, reason):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason), opened(path):
        pass
    with pytest.raises(IsADirectoryError), opened(tmp_path):
        pass


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path, {"a": np.ones(4 * PIECE, "u1")})
    with opened(path) as file, open(path, "r+b") as other:
        other.truncate(PIECE)
        with pytest.raises(ValueError, match=r"a\.safetensors: a is cut short"):
            file.array("a")


@pytest.mark.parametrize("array", [np.array(["x"]), np.ones(2, "c8"), np.array([None])])
def test_what_the_format_does_not_have_is_not_written(tmp_path, array):
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match="b is "):
        write(path, {"a": np.ones(1), "b": array})
    with pytest.raises(FloatingPointError, match="c has numbers that are not finite"):
        write(path, {"c": np.array([1, np.nan])})
    assert not path.exists()


def test_a_tensor_is_read_and_written_in_pieces(tmp_path):
    """Beyond the arrays themselves, one piece at a time is in memory."""
    path = tmp_path / "a.safetensors"
    x = np.arange(16 * PIECE // 4, dtype="f4").reshape(-1, 1024)
    with meter() as memory:
        write(path, {"x": x.T.astype("f4", "C").T, "y": x[:5]})
        before = memory.read()[0]
        memory.reset()
        with opened(path) as file:
            y = np.empty_like(x)
            for rows, numbers in file.pieces("x"):
                assert numbers.nbytes <= PIECE
                y[rows] = numbers
        assert memory.read()[1] - before <= y.nbytes + 3 * PIECE
    assert np.array_equal(x, y)
