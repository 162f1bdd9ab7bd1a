"""A model's layers and parameters under the names of `transformers`, which PEFT's files use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...adapters.places import adaptable, bare
from ...adapters.registry import base_of
from ...backend import asnumpy
from ...nn import Embedding
from ..names import LAYOUTS, LETTERS, Place, kind_of, layout_of
from ..settings import SETTINGS

APART = {  # our layers that PEFT cannot adapt in the same way
    "conv.mix": "it is a convolution in transformers",
    "rel": "transformers reads the table of distances past its adapter",
}


class Layer(NamedTuple):
    """A module of theirs that can have an adapter.

    ours    our layers in it: one, or q, k and v of a fused matrix, in the order of its rows
    rows    how many of its rows each has        shape: of its weight, as ours, (rows, columns)
    table   whether it is an Embedding
    """

    ours: tuple[str, ...]
    rows: tuple[int, ...]
    shape: tuple[int, int]
    table: bool


class Modules:
    """The modules of a model as `transformers` has them.

    architecture   the class there, such as "GPT2LMHeadModel"   family: its folder, "gpt2"
    turned         whether it has Conv1Ds
    prefix         of the paths of all modules that a model without a head has, too; `bare`: it is
                   such a model, and its own files do without the prefix
    parameters     their name -> our names, in the order of its parts
    layers         their path -> Layer   apart: path -> why it can have no adapter here
    copies         a name under which a file may have a parameter once more -> its name
    table, head    the paths of the token table and of the output head, if they are one matrix
    """

    def __init__(self, model: Any) -> None:
        config: Any = getattr(model, "config", None)
        if type(config) not in LAYOUTS:
            kinds = ", ".join(kind.__name__.removesuffix("Config") for kind in LAYOUTS)
            raise ValueError(
                f"PEFT's names are known for {kinds}, not for a {type(model).__name__}: save and "
                "load its adapters as .npz files, by lora.save and lora.load"
            )
        layout, kind = layout_of(type(config)), kind_of(config)
        self.architecture, self.prefix = layout.heads[kind].architecture, f"{layout.prefix}."
        self.bare = layout.full("", kind) == ""
        (types,) = (s.types for s in SETTINGS if s.config is type(config))
        self.family = (kind if kind in types else types[0]).replace("-", "_")
        self.base, layers = base_of(model), adaptable(model)
        self.parameters: dict[str, tuple[str, ...]] = {}
        self._places, self.apart = dict[str, Place](), dict[str, str]()
        for at in self.base:
            path, _, letter = at.rpartition(".")
            try:
                place = layout.place(path, kind)
            except KeyError:
                raise ValueError(
                    f"{at} is no parameter of a {self.architecture}, so PEFT has no name for it: "
                    "save and load the adapter as a .npz file, by lora.save and lora.load"
                ) from None
            name = layout.full(f"{place.path}.{LETTERS[letter]}", kind)
            name = f"{self.prefix}{name}" if self.bare else name
            self.parameters[name] = (*self.parameters.get(name, ()), at)
            self._places[name] = place if letter == "W" else Place(place.path)
            if letter == "W" and path in APART:
                self.apart[name.removesuffix(".weight")] = APART[path]
        self.turned = any(place.turned for place in self._places.values())
        self.layers: dict[str, Layer] = {}
        for name, ours in self.parameters.items():
            paths = tuple(at.rpartition(".")[0] for at in ours)
            if ours[0].endswith(".W") and paths[0] in layers and paths[0] not in APART:
                shapes = [self.base[at][1].shape for at in ours]
                rows = tuple(shape[0] for shape in shapes)
                table = isinstance(bare(layers[paths[0]]), Embedding)
                self.layers[name.removesuffix(".weight")] = Layer(
                    paths, rows, (sum(rows), shapes[0][1]), table)
        self.copies, self.table, self.head = dict[str, str](), "", ""
        for copy, name in layout.copies.items():
            copy, name = layout.full(copy, kind), layout.full(name, kind)
            if kind not in ("classes", "pooler", "none") and copy not in self.parameters:
                self.copies[copy] = name
                if name.endswith(".weight"):
                    self.table, self.head = name[: -len(".weight")], copy[: -len(".weight")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter of theirs."""
        parts = [part.shape for _, part in self._parts(name)]
        return (*parts[0][:-1], sum(part[-1] for part in parts))

    def split(self, name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (our name, our array) for each part of a parameter of theirs."""
        place, start = self._places[name], 0
        for at, part in self._parts(name):
            stop = start + part.shape[-1]
            ours = np.empty(self.base[at][1].shape, array.dtype)
            place.view(ours)[...] = array[..., start:stop]
            yield at, ours
            start = stop

    def joined(self, name: str, own: Mapping[str, Any]) -> np.ndarray:
        """Return a parameter of theirs: our arrays in `own`, and the base's where it has none."""
        place = self._places[name]
        parts = [place.view(asnumpy(own[at])) if at in own else part
                 for at, part in self._parts(name)]
        return np.ascontiguousarray(np.concatenate(parts, axis=-1))

    def _parts(self, name: str) -> Iterator[tuple[str, np.ndarray]]:
        for at in self.parameters[name]:
            yield at, self._places[name].view(asnumpy(self.base[at][1].data))

    def tops(self) -> tuple[str, ...]:
        """Return how names begin where they have the prefix; without it, none begins so."""
        return tuple({f"{name.partition('.')[0]}." for name in [*self.parameters, *self.copies]})

    def modules(self) -> list[str]:
        """Return the paths of all modules that have a parameter, themselves or below."""
        above = dict[str, None]()
        for name in [*self.parameters, *self.copies]:
            parts = name.split(".")
            above |= dict.fromkeys(".".join(parts[:i]) for i in range(1, len(parts)))
        return [*above]

