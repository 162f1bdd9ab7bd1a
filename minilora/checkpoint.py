"""Arrays and a little JSON in one .npz file: written atomically, read strictly, never pickled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import asarray

if TYPE_CHECKING:
    from pathlib import Path

META = "meta.json"


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Path:
    """Write arrays (host) and meta (JSON) to `path`, all of it or nothing; returns the path.

    The file appears under its name only when it is whole, so an interruption costs nothing.
    """
    import json
    import tempfile
    from pathlib import Path

    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the name of a minilora file ends in .npz")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is not a folder: create it first")
    pickled = [name for name, array in arrays.items() if np.asarray(array).dtype.hasobject]
    if pickled:
        raise TypeError(f"{path}: {pickled[0]} holds Python objects, and nothing is pickled")
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{META: text}, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def read(
    path: str | os.PathLike[str], kind: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays, meta) of a file that `write` made; ValueError where it is something else.

    `kind`: what meta["kind"] has to be, such as "adapter" or "model".
    """
    import json

    with open(path, "rb") as opened:
        try:
            with np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            meta = dict(json.loads(arrays.pop(META).tobytes()))
        except Exception as error:  # whatever NumPy, zip or JSON make of broken bytes
            raise ValueError(f"{path} is not a minilora file, or it is damaged: {error}") from error
    if kind is not None and meta.get("kind") != kind:
        raise ValueError(f"{path} holds a {meta.get('kind', 'thing of no kind')}, not a {kind}")
    return arrays, meta


def fill(own: Mapping[str, Any], state: Mapping[str, Any], who: str, strict: bool = True) -> None:
    """Copy the arrays of `state` into those of the same name in `own`, all of them or none.

    Raises KeyError for missing or unexpected names (unless strict=False), ValueError for a shape.
    """
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if strict and (missing or unexpected):
        raise KeyError(
            f"{who}: missing {missing[:5]}, unexpected {unexpected[:5]} "
            f"({len(missing)} and {len(unexpected)} in all)"
        )
    new = {name: asarray(state[name], own[name].dtype) for name in own if name in state}
    for name, array in new.items():
        if tuple(array.shape) != tuple(own[name].shape):
            raise ValueError(
                f"{who}: {name} is {tuple(own[name].shape)} here, {tuple(array.shape)} in the state"
            )
    for name, array in new.items():
        own[name][...] = array


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Eight hexadecimal digits that change when a bit of the arrays (host) does (CRC-32)."""
    import zlib

    code = 0
    for array in arrays:
        code = zlib.crc32(np.ascontiguousarray(array).tobytes(), code)
    return f"{code:08x}"
