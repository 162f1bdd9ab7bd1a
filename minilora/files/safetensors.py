"""Tensors in a .safetensors file: the format of Hugging Face, read strictly and in pieces.

    8 bytes     the length of the header, little endian
    header      JSON: {"tok": {"dtype": "F32", "shape": [9, 4], "data_offsets": [0, 144]}, ...}
    numbers     those of each tensor in C order, little endian, one tensor after the other

A file may come from a stranger: dtypes, shapes, offsets and sizes are checked against the size of
the file before any number is read. NumPy has no bfloat16: these are the upper halves of float32
numbers, so they become float32, exactly.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

import numpy as np

from . import atomic, objects

DTYPES = {  # in the header -> in memory; bfloat16 is read as integers
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
    "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}
FLOATS = "F64", "F32", "F16", "BF16"
LONGEST_HEADER, PIECE = 1 << 24, 1 << 20  # bytes


class Entry(NamedTuple):
    """A tensor in a file: its dtype as the header names it, its shape, where its numbers begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int


class File:
    """An open file: `tensors` (name -> Entry) and `metadata`. Every error is a ValueError that
    begins with the file's name.
    """

    def __init__(self, path: str | os.PathLike[str], stream: BinaryIO) -> None:
        self.path, self._stream = path, stream
        try:
            self.tensors, self.metadata = _header(stream)
        except ValueError as error:
            raise ValueError(
                f"{path} is not a safetensors file, or it is damaged: {error}") from error

    def pieces(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, their numbers), until all rows of a tensor are read.

        The array is of the tensor's dtype (float32 for bfloat16) and is used again for the next
        rows. A tensor without axes is one row.
        """
        dtype, shape, start = self.tensors[name]
        rows, *rest = shape or (1,)
        stored = np.dtype(DTYPES[dtype])
        most = max(1, PIECE // max(1, stored.itemsize * math.prod(rest)))
        buffer = np.empty((min(most, rows), *rest), stored)
        for first in range(0, rows, most):
            numbers = buffer[: min(most, rows - first)]
            self._stream.seek(start + first * stored.itemsize * math.prod(rest))
            into = numbers.reshape(-1).view(np.uint8).data
            if self._stream.readinto(into) != numbers.nbytes:  # type: ignore[attr-defined]
                raise ValueError(f"{self.path}: {name} is cut short")
            if dtype == "BF16":
                numbers = (numbers.astype("<u4") << 16).view("<f4")
            yield slice(first, first + len(numbers)), numbers

    def array(self, name: str) -> np.ndarray:
        """Return a tensor as an array; bfloat16 as float32."""
        dtype, shape, _ = self.tensors[name]
        result = np.empty(shape, "<f4" if dtype == "BF16" else DTYPES[dtype])
        for rows, numbers in self.pieces(name):
            np.atleast_1d(result)[rows] = numbers
        return result


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[File]:
    """Yield the file, open for reading. Raises ValueError for a damaged one."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, not a file")
    with open(path, "rb") as stream:
        yield File(path, stream)


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays (host) to `path`, completely or not at all. Equal content gives equal bytes.

    Raises TypeError for anything but numbers, FloatingPointError for numbers that are not finite.
    """
    names = {np.dtype(ours).newbyteorder("="): name for name, ours in DTYPES.items()
             if name != "BF16"}
    entries, end = dict[str, object](__metadata__={"format": "pt"}), 0
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    for name in order:  # the widest first, so that each number is aligned
        array = arrays[name]
        if (kind := array.dtype.newbyteorder("=")) not in names:
            raise TypeError(f"{path}: {name} is {array.dtype}, which no safetensors file holds")
        if kind.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"{path} is not written: {name} has numbers that are not finite")
        start, end = end, end + array.nbytes
        entries[name] = {
            "dtype": names[kind], "shape": list(array.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with atomic.writing(path, ".safetensors") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in order:
            array = np.atleast_1d(arrays[name])
            most = max(1, PIECE // max(1, array[:1].nbytes))
            for first in range(0, len(array), most):
                piece = array[first : first + most]
                file.write(piece.astype(piece.dtype.newbyteorder("<"), "C", copy=False).tobytes())


def _header(stream: BinaryIO) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return (tensors, metadata), after a check of every entry. ValueError for a defect."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError(f"it has {size:,} bytes, too few for its header")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than any model needs")
    entries = objects.parse(stream.read(length), "header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError("its metadata is not an object of texts")
    tensors, ranges = dict[str, Entry](), list[tuple[int, int]]()
    for name, entry in entries.items():
        if not name.isprintable():
            raise ValueError(f"the name {name[:80]!r} cannot be printed")
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name} has no dtype, shape and data_offsets, or more than these")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(
                f"{name} has the dtype {str(dtype)[:20]!r}: read are {', '.join(DTYPES)}")
        if not _sizes(shape) or len(shape) > 32 or max(shape, default=0) > size:
            raise ValueError(f"the shape of {name} is not a list of sizes that a file can have")
        if not _sizes(offsets) or len(offsets) != 2:
            raise ValueError(f"the data_offsets of {name} are not two places")
        begin, end = offsets
        if end - begin != (needed := math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize):
            raise ValueError(
                f"{name} is {tuple(shape)} of {dtype}, {needed:,} bytes, but has {end - begin:,}")
        ranges.append((begin, end))
        tensors[name] = Entry(dtype, tuple(shape), 8 + length + begin)
    place = 0
    for begin, end in sorted(ranges):
        if begin != place:
            raise ValueError("its tensors overlap, or there are gaps between them")
        place = end
    if place != size - 8 - length:
        raise ValueError(
            f"its tensors take {place:,} bytes, but {size - 8 - length:,} follow the header")
    return tensors, metadata


def _sizes(numbers: object) -> bool:
    """Return whether this is a list of integers >= 0."""
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)
