"""Which files of a folder are minilora's: LIST, a file in it, has the checksum of each.

So a file of the user's is known, and so is one of ours that was edited: neither is replaced.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import atomic

LIST = ".minilora.json"  # file in the folder -> the CRC-32 of its bytes
OTHERS = (".DS_Store", "Thumbs.db", "desktop.ini")  # systems write them where folders are looked at


def known(folder: Path) -> dict[str, int]:
    """Return the checksums in a folder's LIST; none if there is no such file."""
    try:
        sums = json.loads((folder / LIST).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return sums if isinstance(sums, dict) else {}


def listed(files: Mapping[str, bytes]) -> bytes:
    """Return the LIST of these files."""
    return json.dumps({name: zlib.crc32(data) for name, data in files.items()}).encode()


def unchanged(path: Path, checksum: int | None) -> bool:
    """Return whether the file is one that minilora wrote, and still has the same bytes."""
    return not path.is_symlink() and path.is_file() and zlib.crc32(path.read_bytes()) == checksum


def theirs(folder: Path) -> list[str]:
    """Return the files in a folder that are the user's: added, or changed since we wrote them."""
    sums = known(folder)
    return [
        name for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink()
        if (name := path.relative_to(folder).as_posix()) != LIST and path.name not in OTHERS
        if not unchanged(path, sums.get(name))
    ]


def check(folder: Path, names: Iterable[str]) -> None:
    """Raise ValueError, with the remedy, if one of these files is there and is not ours."""
    sums = known(folder)
    for name in names:
        path = folder / name
        if (path.exists() or path.is_symlink()) and not unchanged(path, sums.get(name)):
            raise ValueError(
                f"{path} exists, and minilora did not write it so: give another folder, or move "
                "it first"
            )


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write these files (name -> bytes) to a folder, and remove our others. A user's stay.

    The bytes of a file are whole at any instant. Raises ValueError before anything is written if
    one of the files is the user's.
    """
    check(folder, files)
    sums = known(folder)
    ours = [name for name in sums if unchanged(folder / name, sums[name])]
    same = {name for name in ours if files.get(name) == (folder / name).read_bytes()}
    for name in ours:
        if name not in same:
            (folder / name).unlink()
    for name, data in {LIST: listed(files), **files}.items():  # LIST first: a crash leaves no
        if name not in same:  # file that it does not know
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic.writing(folder / name) as file:
                file.write(data)
