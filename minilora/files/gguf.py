"""Tensors and settings in a .gguf file: the format of llama.cpp, read strictly and in pieces.

    header      "GGUF", the version (2 or 3), how many tensors, how many settings
    settings    key, type, value; a text or an array begins with its length
    tensors     name, axes (our last one first), kind, place
    numbers     of one tensor after the other, each from a multiple of general.alignment on

All is little endian. A kind may be quantised: blocks of numbers along the last axis, each with its
own scale. The package gguf knows the sizes of the blocks and what their bits mean. As a file may
come from a stranger, all that it says is checked against its size before a number is read.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..backend.flags import quietly
from ..extras import need

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd"))  # type -> for `struct`
TEXT, ARRAY = 8, 9  # the other types
PIECE = 1 << 20  # bytes


class Entry(NamedTuple):
    """A tensor in a file: its kind, its shape, and where its numbers begin."""

    kind: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int


class File:
    """An open file: `tensors` (name -> Entry) and `settings` (key -> value). Every error is a
    ValueError that begins with the file's name.
    """

    def __init__(self, path: str | os.PathLike[str], stream: BinaryIO) -> None:
        self.path, self._stream, self._package = path, stream, need("gguf", "GGUF files", "gguf")
        self._size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        try:
            self.settings, self.tensors = self._header()
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} is not a GGUF file, or it is damaged: {error}") from error

    def pieces(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, their numbers in float32), until all rows of a tensor are read."""
        kind, (*rows, width), start = self.tensors[name]
        count, each = math.prod(rows), self._bytes(kind, width)
        most = max(1, PIECE // each)
        for first in range(0, count, most):
            last = min(first + most, count)
            self._stream.seek(start + first * each)
            stored = np.frombuffer(self._take((last - first) * each), np.uint8)
            numbers = quietly(self._package.quants.dequantize, stored.reshape(-1, each), kind)
            if rows:
                yield slice(first, last), numbers
            else:
                yield slice(0, width), numbers[0]

    def _take(self, count: int) -> bytes:
        """Return the next bytes."""
        if count > self._size - self._stream.tell():
            raise ValueError(f"it is cut short: {count:,} more bytes are missing at its end")
        return self._stream.read(count)

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]

    def _text(self) -> str:
        return self._take(self._number("Q")).decode()  # a UnicodeDecodeError is a ValueError

    def _name(self) -> str:
        if not (name := self._text()).isprintable():
            raise ValueError(f"the name {name[:80]!r} cannot be printed")
        return name

    def _value(self, kind: int) -> Any:
        """Return a setting's value. Raises ValueError for an array of arrays."""
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == TEXT:
            return self._text()
        if kind != ARRAY:
            raise ValueError(f"a setting has the type {kind}, which is none")
        inner, count = self._number("I"), self._number("Q")
        if inner == TEXT:
            if count > self._size // 8:
                raise ValueError(f"an array of {count:,} texts is longer than the file")
            return [self._text() for _ in range(count)]
        if inner not in SCALARS:
            raise ValueError(f"an array has items of the type {inner}, and may not have them")
        size = struct.calcsize(f"<{SCALARS[inner]}")
        return np.frombuffer(self._take(count * size), f"<{SCALARS[inner]}").tolist()

    def _header(self) -> tuple[dict[str, Any], dict[str, Entry]]:
        """Return settings and tensors, after a check of every entry. ValueError for a defect."""
        if (magic := self._take(4)) != b"GGUF":
            raise ValueError(f"it begins with {magic!r}, not with b'GGUF'")
        if (version := self._number("I")) not in (2, 3):
            raise ValueError(f"its version is {version}: read are 2 and 3, in little endian")
        n_tensors, n_settings = self._number("Q"), self._number("Q")
        settings, infos = dict[str, Any](), dict[str, tuple[Any, tuple[int, ...], int]]()
        for _ in range(n_settings):
            if (key := self._name()) in settings:
                raise ValueError(f"it has the setting {key} twice")
            settings[key] = self._value(self._number("I"))
        for _ in range(n_tensors):
            if (name := self._name()) in infos:
                raise ValueError(f"it has the tensor {name} twice")
            if not 1 <= (axes := self._number("I")) <= 4:
                raise ValueError(f"{name} has {axes} axes, not 1 to 4")
            shape = tuple(self._number("Q") for _ in range(axes))[::-1]
            infos[name] = self._kind(name, self._number("I")), shape, self._number("Q")
        align = settings.get("general.alignment", 32)
        if type(align) is not int or align < 1:
            raise ValueError(f"general.alignment is {align!r}, not an integer from 1")
        begin = -(-self._stream.tell() // align) * align
        entries, place = dict[str, Entry](), 0
        for name, (kind, shape, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
            if offset % align or not place <= offset < place + align:
                raise ValueError(f"its tensors overlap or have gaps: {name} begins at {offset}")
            place = offset + math.prod(shape[:-1]) * self._bytes(kind, shape[-1], name)
            entries[name] = Entry(kind, shape, begin + offset)
        if not 0 <= self._size - begin - place < align:
            raise ValueError(f"its tensors end at {begin + place:,}, the file at {self._size:,}")
        return settings, entries

    def _kind(self, name: str, number: int) -> Any:
        """Return the kind with this number. Raises ValueError unless `pieces` can widen it."""
        kinds = self._package.GGMLQuantizationType
        known = {*self._package.quants._type_traits, kinds.F32, kinds.F16}
        if number not in known:
            raise ValueError(f"{name} is of kind {number}: known are "
                             f"{', '.join(f'{k.value} ({k.name})' for k in sorted(known))}")
        return kinds(number)

    def _bytes(self, kind: Any, width: int, name: str = "") -> int:
        """Return the bytes of a row. Raises ValueError unless it has complete blocks."""
        block, size = self._package.GGML_QUANT_SIZES[kind]
        if not width or width % block:
            raise ValueError(f"{name} has rows of {width}, and {kind.name} has blocks of {block}")
        return int(width // block * size)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[File]:
    """Yield the file, open for reading. Raises ValueError for a damaged one."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, not a file")
    with open(path, "rb") as stream:
        yield File(path, stream)
