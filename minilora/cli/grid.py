"""The points of `minilora sweep`: every combination of what a TOML file lists.

    methods = ["lora", "dora"]            # lists: each point has one of each
    ranks = [2, 8]
    targets = ["q,v", "q,k,v,o"]
    rates = [1e-3, 1e-2]
    seeds = [0, 1, 2]

    [finetune]                            # what minilora finetune is given for every point
    text = "kjv"
    steps = 100

A point is a command line of `minilora finetune`, so that its options are described only there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .. import data
from ..files.text import read
from ..jobs.driver import Job
from ..models.pretrained import BASES
from . import finetune, settings
from .parser import COMMON, Parser, either, meant, parse

AXES = {"methods": "method", "ranks": "r", "targets": "targets", "rates": "lr", "seeds": "seed"}
ALWAYS = {"methods": ["lora"], "seeds": [0]}  # the default; the others have that of finetune
COMMAND = "finetune"
NO = {  # options of finetune that a point has no use for -> the remedy
    "out": "minilora finetune writes the adapter of the point that you choose",
    "adapter": "a point trains a new adapter", "restart": "give another --out",
    **dict.fromkeys(("chart", "export"), "minilora finetune has it"),
    **dict.fromkeys((name[2:] for name in COMMON), "it is no option of a point"),
    **{option: f"list it in {axis} = [...], above [{COMMAND}]" for axis, option in AXES.items()},
}
FILES = ("text", "eval", "base", "data")  # options that may name a file or a folder


def points(path: Path) -> list[Job]:
    """Return the points of a file, each once. Raises ValueError, with the remedy, if the file or
    something in it is wrong or has no use."""
    try:
        table = tomllib.loads(read(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    try:
        return [*_points(table)]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _points(table: Mapping[str, Any]) -> Iterable[Job]:
    shared = table.get(COMMAND, {})
    if not isinstance(shared, dict):
        raise ValueError(f"{COMMAND} is a table: write [{COMMAND}], and its options below")
    known = ["text", *(name[2:] for name in _parser().options if name.startswith("--"))]
    for key in table:
        if key not in (*AXES, COMMAND):
            inside = f"write it below [{COMMAND}]" if key in known else ""
            raise ValueError(meant(key, AXES, inside or f"give {either([*AXES, f'[{COMMAND}]'])}"))
    for key, value in shared.items():
        name = f"[{COMMAND}] {key}"
        if remedy := NO.get(key):
            raise ValueError(f"{name}: {remedy}")
        if key not in known:
            words = meant(f"--{key}", _parser().options, f"see `minilora {COMMAND} --help`")
            raise ValueError(f"[{COMMAND}] {words.replace(' --', ' ').removeprefix('--')}")
        if value is False:
            raise ValueError(f"{name} = false: leave it out")
        if key != "text":
            _check(name, key, _text(value))
    axes = {axis: _axis(axis, table.get(axis, ALWAYS.get(axis))) for axis in AXES}
    for axis, option in AXES.items():
        if option in settings.READERS and axes[axis] != [None]:
            _acts(axis, option, axes["methods"])
    for option in shared.keys() & settings.READERS.keys():
        _acts(f"[{COMMAND}] {option}", option, axes["methods"])
    seen = set[str]()
    for values in itertools.product(*axes.values()):
        own = settings.DEFAULTS[values[0]]
        chosen = dict(zip(AXES.values(), values)) | {key: _text(x) for key, x in shared.items()}
        options = {name: value for name, value in chosen.items() if value is not None
                   and (name in own or name not in settings.READERS)}
        files = {name: digest(options[name]) for name in FILES if _is_file(name, options)}
        job = Job("sweep", {"options": options, "files": files}, name_of(options, axes))
        if job.key not in seen:  # a method without ranks has one point for all of them
            seen.add(job.key)
            yield job


def _axis(axis: str, values: Any) -> list[Any]:
    """Return the values of an axis as words of a command line; [None] if it is not given."""
    if values is None:
        return [None]
    if not isinstance(values, list) or not values:
        raise ValueError(f"{axis} = {values!r}: give a list of one or more, such as "
                         f"{axis} = [{_example(axis)}]")
    words = [_text(value) for value in values]
    for word in words:
        if words.count(word) > 1:
            raise ValueError(f"{axis}: {word} is there twice: remove one")
        _check(axis, AXES[axis], word)
    return words


def _check(name: str, option: str, word: str) -> None:
    """Raise ValueError, with the name in the file, if finetune's option refuses a value."""
    try:
        arguments({"text": "", option: word})
    except ValueError as error:
        raise ValueError(str(error).replace(f"--{option}", name, 1)) from None


def _acts(name: str, option: str, chosen: list[str]) -> None:
    """Raise ValueError if none of the chosen methods has this setting."""
    if not any(option in settings.DEFAULTS[method] for method in chosen):
        raise ValueError(f"{name} cannot act on {', '.join(chosen)}: it is for "
                         f"{either(settings.having(option))}; leave it out")


def _example(axis: str) -> str:
    return {"methods": '"lora", "dora"', "targets": '"q,v", "q,k,v,o"', "rates": "1e-3, 1e-2"}.get(
        axis, "1, 4")


def _text(value: Any) -> str:
    """Return a value of TOML as it is typed behind an option; True is that of a flag."""
    if isinstance(value, list):
        return ",".join(map(_text, value))
    return repr(value) if isinstance(value, bool | float) else str(value)


def name_of(options: Mapping[str, str], axes: Mapping[str, list[Any]]) -> str:
    """Return the point's name: its method, and what it has of the axes with several values."""
    parts = [f"{option}={options[option]}" for axis, option in AXES.items()
             if axis != "methods" and option in options and len(axes[axis]) > 1]
    return " ".join([options["method"], *parts])


def _is_file(name: str, options: Mapping[str, str]) -> bool:
    value = options.get(name)
    built_in = name != "data" and value in (*data.TEXTS, *BASES)
    return value is not None and not built_in and Path(value).exists()


@functools.cache
def digest(name: str) -> str:
    """Return a digest of the bytes of a file, or of all files in a folder and their names."""
    path, sums = Path(name), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sums.update(file.relative_to(path).as_posix().encode() + b"\0")
            with file.open("rb") as content:
                sums.update(hashlib.file_digest(content, "sha256").digest())
    return sums.hexdigest()[:16]


@functools.cache
def _parser() -> Parser:
    """The parser of `minilora finetune`."""
    top = Parser(prog="minilora")
    finetune.add_to(top)
    return top.commands[COMMAND]


def arguments(options: Mapping[str, str], out: str = "point.npz") -> argparse.Namespace:
    """Return the options of `minilora finetune` for a point. ValueError if one is refused."""
    words = [] if "text" not in options else [options["text"]]
    for name, value in options.items():
        if name != "text":
            words.append(f"--{name}" if value == "True" else f"--{name}={value}")
    return parse(_parser(), ["--seed=0", f"--out={out}", *words])
