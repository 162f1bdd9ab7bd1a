"""Arrays and JSON in one .npz file: written atomically, read strictly, never pickled.

A file may come from a stranger. `opened` reads its headers and checks all sizes against the size of
the file. Then the reader names the arrays and shapes that it wants, and only then numbers are read.
Members are not compressed, so that no file takes more memory than its own size.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .. import __version__
from ..backend.blocks import restoring
from ..checks import a, describe
from . import atomic, objects
from .blame import blamed
from .budget import budget

if TYPE_CHECKING:
    import zipfile
    from pathlib import Path

META = "meta.json"
FORMAT = 1  # version of the file format, stored in each file; a file without one has version 1
LONGEST_META, MOST_MEMBERS, LONGEST_LIST = 1 << 20, 10_000, 1 << 21  # bytes, number, bytes

# NumPy's header for an array of plain numbers in C order. It is matched, not evaluated.
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biuf][1248])', 'fortran_order': False, "
    rb"'shape': \(((?:\d{1,15}, ?)*\d{0,15})\), \} *\n",
    re.DOTALL,
)


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write arrays (host) and meta (JSON) to `path`, completely or not at all. Return the path.

    Equal content gives equal bytes. Raises ValueError for a path that cannot be written, TypeError
    for anything but numbers and JSON, FloatingPointError for numbers that are not finite; the old
    file is unchanged then.
    """
    import json
    import zipfile
    from pathlib import Path

    members = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in members.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{path}: {name} is {array.dtype}, not numbers: nothing is pickled")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FloatingPointError(
                f"{path} is not written: {name} has numbers that are not finite")
    ours = {"format": FORMAT, "made_by": f"minilora {__version__}"}
    try:
        text = json.dumps({**ours, **meta}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path} is not written: its {META}: {error}") from error
    if len(text) > LONGEST_META:
        raise ValueError(
            f"{path} is not written: its {META} would have {len(text):,} bytes, and at most "
            f"{LONGEST_META:,} are allowed")
    with atomic.writing(path, ".npz") as file:
        archive = zipfile.ZipFile(file, "w")
        with restoring(lambda: setattr(archive, "fp", None)):  # half of it cannot be closed
            for name, array in {META: np.frombuffer(text, np.uint8), **members}.items():
                entry = zipfile.ZipInfo(f"{name}.npy")  # without the time of day
                with archive.open(entry, "w", force_zip64=True) as member:
                    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
                    np.lib.format.write_array(member, little, version=(1, 0), allow_pickle=False)
            archive.close()
    return Path(path)


READERS = {"adapter": "lora.load", "method": "methods.load", "model": "ml.load_model",
           "run": "ml.fit(..., checkpoint=...)"}
LIKE = "use a model of the same kind and sizes as the saved one"


class File:
    """An open file: path, kind, meta (its JSON, a dict), shapes and dtypes (array name -> its own).

    made_by: the version that wrote it, or "unknown" (the first did not say). Numbers are read
    later. Every error is a ValueError that begins with the file's name.
    """

    def __init__(self, path: str | os.PathLike[str], stream: BinaryIO) -> None:
        self.path = path
        try:
            self._archive, entries = _directory(stream)
            self._members = {name: self._header(name, entry) for name, entry in entries.items()}
            self.meta = objects.parse(self._raw(META).tobytes(), META)
            form, made_by = self.meta.pop("format", 1), self.meta.pop("made_by", None)
        except (_Damaged, ValueError) as error:
            raise ValueError(f"{path} is not a minilora file, or it is damaged: {error}") from error
        if form not in range(1, FORMAT + 1):
            raise self.wrong(
                f"it has format {form!r}, and this version reads up to {FORMAT}: use a newer one")
        kind = self.meta.get("kind")
        self.kind = kind if isinstance(kind, str) else "unknown kind of content"
        version = re.fullmatch("minilora [0-9a-z.+]{1,30}", str(made_by))
        self.made_by = version[0] if version else "unknown"
        members = {name: member for name, member in self._members.items() if name != META}
        self.shapes = {name: shape for name, (_, shape, _) in members.items()}
        self.dtypes = {name: dtype for name, (_, _, dtype) in members.items()}

    def wrong(self, problem: str) -> ValueError:
        """Return a ValueError that names the file."""
        return ValueError(f"{self.path}: {problem}")

    def blamed(self) -> AbstractContextManager[None]:
        """Turn a TypeError, ValueError or KeyError raised in the block into one of `wrong`."""
        return blamed(self.path)

    def facts(self, where: str = META, part: Any = None, /, **wanted: type) -> list[Any]:
        """Return the entries of these names and types, of `meta` or of `part`, a dict inside it."""
        part = self.meta if where == META else part
        for name, kind in wanted.items():
            if not isinstance(part, dict) or name not in part:
                raise self.wrong(f"its {where} has no {name!r}: another version wrote it")
            if type(part[name]) is not kind:
                kinds = f"{describe(part[name])}, not {a(kind.__name__)}"
                raise self.wrong(f"{name!r} of its {where} is {kinds}")
        return [part[name] for name in wanted]

    def budget(self) -> np.random.Generator:
        """Return a generator of zeros, which has as many as the file has numbers; see `budget`."""
        return budget(sum(math.prod(shape) for shape in self.shapes.values()))

    def arrays(self, wanted: Mapping[str, Collection[int]]) -> dict[str, np.ndarray]:
        """Return the arrays of these names and shapes, on the host.

        ValueError unless they are finite floats, and all arrays in the file.
        """
        stored = self.shapes
        missing, unknown = sorted(wanted.keys() - stored.keys()), sorted(stored.keys() - wanted)
        if missing or unknown:
            raise self.wrong(
                f"it does not fit: missing {missing[:4]}, unexpected {unknown[:4]} "
                f"({len(missing)} and {len(unknown)} in all): {LIKE}")
        for name, shape in wanted.items():
            if stored[name] != tuple(shape):
                raise self.wrong(
                    f"it does not fit: {name} is {stored[name]}, not {tuple(shape)}: {LIKE}")
            if self.dtypes[name].kind != "f":
                raise self.wrong(f"{name} is {self.dtypes[name]}, not floats")
        arrays = {name: self.array(name) for name in wanted}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise self.wrong(f"{name} has numbers that are not finite")
        return arrays

    def array(self, name: str) -> np.ndarray:
        """Return one array of any dtype and shape, on the host."""
        try:
            return self._raw(name)
        except _Damaged as error:
            raise self.wrong(f"it is damaged: {error}") from error

    def _header(
        self, name: str, entry: zipfile.ZipInfo
    ) -> tuple[zipfile.ZipInfo, tuple[int, ...], np.dtype[Any]]:
        """Return (entry, shape, dtype) of an array, after a check of its size."""
        with _reading(name), self._archive.open(entry) as member:
            head = member.read(10)
            length = int.from_bytes(head[8:10], "little")
            match = HEADER.fullmatch(head + member.read(length))
        if not match:
            raise _Damaged(f"{name} is not an array of plain numbers")
        descr, sizes = match.groups()
        shape = tuple(int(n) for n in sizes.split(b",") if n.strip())
        dtype = np.dtype(descr.decode())
        if entry.file_size != 10 + length + math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"{name} is {shape} of {dtype}, but has {entry.file_size} bytes")
        if name == META and (len(shape) != 1 or dtype != np.uint8 or shape[0] > LONGEST_META):
            raise _Damaged(f"{META} is {shape} of {dtype}, not up to {LONGEST_META:,} bytes")
        return entry, shape, dtype

    def _raw(self, name: str) -> np.ndarray:
        if name not in self._members:
            raise _Damaged(f"it has no {name}")
        entry, shape, dtype = self._members[name]
        array = np.empty(shape, dtype)
        left = array.reshape(-1).view(np.uint8).data
        with _reading(name), self._archive.open(entry) as member:
            member.read(entry.file_size - len(left))  # the header
            while n := member.readinto(left[: 1 << 20]):  # type: ignore[attr-defined]
                left = left[n:]
        if left:
            raise _Damaged(f"{name} is cut short")
        return array


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], kind: str | None = None, *others: str) -> Iterator[File]:
    """Yield the file, open for reading; ValueError if `write` did not write it.

    kind: the required meta["kind"], such as "adapter" or "model"; None: any. others: kinds that
    will do as well.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path} is a folder, not a file")
    with open(path, "rb") as stream:
        file = File(path, stream)
        if kind is not None and file.kind not in (kind, *others):
            reader = f": {READERS[file.kind]} reads it" if file.kind in READERS else ""
            raise ValueError(f"{path} holds {a(file.kind)}, not {a(kind or '')}{reader}")
        yield file


def read(
    path: str | os.PathLike[str], kind: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, meta) of a file with any arrays, to inspect it. See `opened`."""
    with opened(path, kind) as file:
        return {name: file.array(name) for name in file.shapes}, file.meta


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Return the CRC-32 of the arrays (host), as eight hexadecimal digits."""
    import zlib

    code = 0
    for array in arrays:
        code = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, code)
    return f"{code:08x}"


class _Damaged(Exception):
    """A defect in the bytes of a file."""


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn any error of zipfile in the block into _Damaged."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the disk is at fault, not the bytes; EINVAL means an impossible offset
        raise _Damaged(f"{name} cannot be read, or its checksum is wrong") from error


def _directory(stream: BinaryIO) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Return (archive, array name -> entry), after a check of the list's length and all sizes."""
    import struct
    import zipfile

    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 98))
    tail = stream.read(98).rjust(98, b"\0")  # 56 + 20 bytes of a ZIP64 end, 22 of the end
    if tail[76:80] != b"PK\5\6":
        raise _Damaged("it does not end as a .npz file does")
    count, length = struct.unpack("<HL", tail[86:92])
    if tail[56:60] == b"PK\6\7":
        count, length = struct.unpack("<QQ", tail[32:48])
        if tail[:4] != b"PK\6\6" or struct.unpack("<Q", tail[64:72])[0] != size - 98:
            raise _Damaged("its list of arrays is not where it ends")
    if count > MOST_MEMBERS or length > LONGEST_LIST:
        raise _Damaged(f"it lists {count:,} arrays in {length:,} bytes, more than any model has")
    with _reading("its list of arrays"):
        archive = zipfile.ZipFile(stream)
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or not name.isprintable():
            raise _Damaged(f"it contains {entry.filename[:80]!r}, which is not an array")
        if name in entries:
            raise _Damaged(f"it contains {name} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise _Damaged(f"{name} is compressed, and minilora never compresses")
        entries[name] = entry
    if sum(entry.file_size for entry in entries.values()) > size:
        raise _Damaged("its arrays overlap")
    if META not in entries:
        raise _Damaged(f"it has no {META}")
    return archive, entries
