"""Models in folders as Hugging Face lays them out: config.json and safetensors files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import Array, asarray, asnumpy
from ..backend.flags import quietly
from ..checks import warn
from ..data.tokenizers import load_tokenizer
from ..extras import need
from ..files import atomic, folders, objects, safetensors
from ..files.blame import blamed
from ..models.families import FAMILIES, build
from ..models.pretrained import base_arrays, give_tokenizer
from ..nn import Module
from .names import Layout, kind_of, layout_of, tensors_of
from .settings import config_from, config_to, settings_of
from .tensors import check, check_dtype, zeros

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TOKENIZERS = "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spm.model"
PICKLES = "pytorch_model.bin", "pytorch_model.bin.index.json"


def load(folder: str | os.PathLike[str], family: type | None = None, dtype: Any = "float32") -> Any:
    """Return the model in a folder, in eval mode; see `from_pretrained`. family: None means any."""
    check_dtype("from_pretrained", dtype)
    place = located(folder)
    with blamed(place / CONFIG):
        raw = objects.read(place / CONFIG)
        settings = settings_of(raw.get("model_type"))
        ours = next(model for config, model in FAMILIES.values() if config is settings.config)
        if family not in (None, ours):
            raise ValueError(
                f"it describes a {ours.__name__}: read it with {ours.__name__}.from_pretrained")
    with opened(place) as files, blamed(place):
        tensors = Tensors(files, layout_of(settings.config))
        head = tensors.head()
        with blamed(place / CONFIG):
            rng = zeros(tensors.entry(name).shape for name in tensors.places)
            model = build(config_from(raw, **head), rng=rng, dtype=dtype)
        give_tokenizer(model, tokenizer_in(place))  # it needs memory that it does not keep
        tensors.fill(model)
    return model.eval()


def tokenizer_in(place: Path) -> Any:
    """Return the tokenizer in a folder, or None: with a warning if it is one that is not read."""
    if not any((place / name).is_file() for name in TOKENIZERS):
        return None
    try:
        return load_tokenizer(place)
    except ValueError as error:
        warn(f"model.tokenizer is None: {error}")
        return None


class Tensors:
    """The tensors of a folder, by their short names; see `Layout.short`."""

    def __init__(self, files: Mapping[str, safetensors.File], layout: Layout) -> None:
        self.layout = layout
        self.places: dict[str, tuple[safetensors.File, str]] = {}
        for name, file in files.items():
            short = layout.short(name)
            if re.fullmatch(layout.ignored, short):
                continue
            if short in self.places:
                raise ValueError(f"it has {short} twice, as {self.places[short][1]} and {name}")
            self.places[short] = file, name

    def entry(self, name: str) -> safetensors.Entry:
        file, stored = self.places[name]
        return file.tensors[stored]

    def pieces(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        file, stored = self.places[name]
        return file.pieces(stored)

    def same(self, a: str, b: str) -> bool:
        """Return whether two tensors have equal shapes and numbers."""
        if self.entry(a)[:2] != self.entry(b)[:2]:
            return False
        pairs = zip(self.pieces(a), self.pieces(b))
        return all(np.array_equal(x, y) for (_, x), (_, y) in pairs)

    def head(self) -> dict[str, Any]:
        """Return the settings that only the tensors show: the kind of head, its labels."""
        firsts = {kind: f"{next(iter(head.modules.values()), '')}.weight"
                  for kind, head in self.layout.heads.items()}
        kind = next((kind for kind, first in firsts.items() if first in self.places), "none")
        if kind == "classes":
            return {"num_labels": max(1, *self.entry(firsts[kind]).shape[:1])}
        return {"head": kind} if kind in firsts else {}

    def one_of_two(self, wanted: Collection[str]) -> None:
        """Drop the copies of tensors that are one tensor here. ValueError if they are not equal."""
        for copy, original in self.layout.copies.items():
            if copy in self.places and copy not in wanted:
                if original not in self.places:
                    self.places[original] = self.places[copy]
                elif not self.same(copy, original):
                    raise ValueError(
                        f"{copy} and {original} are not equal, and here they are one tensor")
                del self.places[copy]

    def fill(self, model: Module) -> None:
        """Copy the tensors into the model, a piece at a time.

        Raises ValueError, before the first piece, with all names that do not fit, and later for
        numbers that are not finite.
        """
        wanted = views(model)
        self.one_of_two(wanted)
        left = [x for x in self.places if x not in wanted and re.fullmatch(self.layout.left, x)]
        found = {x: self.entry(x) for x in self.places if x not in left}
        shapes = {name: shape_of(parts) for name, parts in wanted.items()}
        check(f"this {type(model).__name__}", found, shapes)
        for name, parts in wanted.items():
            for rows, numbers in self.pieces(name):
                for part, piece in zip(parts, split(numbers, parts)):
                    piece = quietly(piece.astype, part.dtype)
                    if not np.isfinite(piece).all():
                        raise ValueError(
                            f"{name} has numbers that are not finite in {part.dtype}")
                    part[rows] = asarray(piece)
        if left:
            warn(f"left out, because they belong to a head that this model does not have: "
                 f"{', '.join(sorted(left))}")


def views(model: Any, arrays: Mapping[str, Array] | None = None) -> dict[str, list[Array]]:
    """Return, by its short name there, the parts of each tensor, side by side along the last axis:
    views of our parameters with the axes that they have there.

    arrays: others in their place, such as gradients, by the parameter's name.
    """
    own = arrays or {name: p.data for name, p in model.named_parameters()}
    return {name: [place.view(own[path]) for path, place in parts]
            for name, parts in tensors_of(model).items()}


def shape_of(parts: list[Array]) -> tuple[int, ...]:
    """Return the shape of the tensor that consists of these parts."""
    *rest, _ = parts[0].shape
    return (*rest, sum(part.shape[-1] for part in parts))


def split(numbers: np.ndarray, parts: list[Array]) -> list[np.ndarray]:
    """Split along the last axis as the parts are."""
    ends = np.cumsum([part.shape[-1] for part in parts])
    return np.split(numbers, ends[:-1], axis=-1)


def located(folder: str | os.PathLike[str]) -> Path:
    """Return the folder; one with the name of a model on the hub is downloaded if none is here."""
    path, name = Path(folder), os.fspath(folder)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{name} is a file: give the folder with {CONFIG} and {WEIGHTS}, or read a file of "
            "minilora with ml.load_model")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        hub = need("huggingface_hub", "names on the hub", "hf")
    except ImportError as error:
        raise FileNotFoundError(f"there is no folder {name}, and {error}") from error
    return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt"]))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[dict[str, safetensors.File]]:
    """Yield the open file of each tensor in a folder, by the tensor's name."""
    with contextlib.ExitStack() as stack:
        if (folder / WEIGHTS).is_file():
            file = stack.enter_context(safetensors.opened(folder / WEIGHTS))
            yield dict.fromkeys(file.tensors, file)
            return
        if not (folder / INDEX).is_file():
            pickle = next((name for name in PICKLES if (folder / name).is_file()), None)
            raise ValueError(
                f"{folder} has no {WEIGHTS}" + (
                    f": {pickle} is a pickle, which can run any code when it is read, so it is not "
                    "read here: save the model as safetensors with transformers" if pickle else ""))
        with blamed(folder / INDEX):
            index = objects.read(folder / INDEX).get("weight_map")
            if not isinstance(index, dict) or not all(_is_file(x) for x in index.values()):
                raise ValueError("its weight_map does not map tensors to files in this folder")
            names = sorted({*index.values()})
            if absent := [name for name in names if not (folder / name).is_file()]:
                raise ValueError(f"of its files, {', '.join(absent)} are not in the folder")
        files = {name: stack.enter_context(safetensors.opened(folder / name)) for name in names}
        there = {(tensor, name) for name, file in files.items() for tensor in file.tensors}
        with blamed(folder / INDEX):
            if wrong := sorted(there ^ {*index.items()}):
                raise ValueError("it and the files do not agree about " + ", ".join(
                    f"{tensor} in {name}" for tensor, name in wrong))
        yield {tensor: files[name] for tensor, name in index.items()}


def _is_file(name: Any) -> bool:
    """Return whether this is the name of a safetensors file, without a folder."""
    return isinstance(name, str) and bool(re.fullmatch(r"[\w-][\w.-]{,200}\.safetensors", name))


def save(model: Any, folder: str | os.PathLike[str]) -> Path:
    """Write config.json, model.safetensors and the tokenizer; see `save_pretrained`."""
    base_arrays(model, "save_pretrained")
    layout, kind = layout_of(type(model.config)), kind_of(model.config)
    arrays = {layout.full(name, kind): joined(parts) for name, parts in views(model).items()}
    config = {
        **config_to(model.config), "architectures": [layout.heads[kind].architecture],
        "dtype": str(next(iter(arrays.values())).dtype),
    }
    with folders.writing(folder) as place:
        safetensors.write(place / WEIGHTS, arrays)
        with atomic.writing(place / CONFIG) as file:
            file.write(json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
        if hasattr(model.tokenizer, "save"):
            model.tokenizer.save(place)
    return Path(folder)


def joined(parts: list[Array]) -> np.ndarray:
    """Return the tensor that consists of these parts, on the host; the only part as it is."""
    arrays = [asnumpy(part) for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
