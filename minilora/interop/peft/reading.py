"""Load a PEFT adapter: its config and its tensors as a method of ours, or one clear error."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...adapters.files import exact, restore
from ...adapters.patterns import matches
from ...adapters.places import adaptable
from ...adapters.registry import adapters_of
from ...adapters.transaction import all_or_nothing
from ...files import objects, safetensors
from ...files.blame import blamed
from ...files.budget import budget
from ...lora.config import LoRAConfig
from ...methods.dora import DoRA
from ...methods.peft_lora import PeftLoRA
from ...methods.rslora import RsLoRA
from ...nn import Module
from ...words import our_words
from ..tensors import check
from .config import CONFIG, PICKLE, PREFIX, WEIGHTS, PeftConfig
from .fitting import Fitted
from .modules import Modules


@our_words
@all_or_nothing
def load_peft(
    model: Module, folder: str | os.PathLike[str], name: str = "default", trainable: bool = False,
    base_dtype: Any = None,
) -> list[str]:
    """Attach the LoRA adapter in a folder of PEFT's, activate it; return the adapted paths.

    Read are adapter_config.json and adapter_model.safetensors. The adapter is frozen unless
    `trainable`. GPT-2's fused q, k and v share one A here, in training too. A bias of B (PEFT's
    lora_bias) is added to a trained copy of the layer's bias. For an adapter that was trained over
    a base in half precision or in codes (QLoRA), give the same `base_dtype` (see `lora.attach`).

    Raises ValueError, and leaves the model as it is, for settings that minilora does not compute,
    and for tensors that are missing, unknown, without PEFT's prefix or of another shape; it gives
    all their names.
    """
    place = _located(folder)
    modules = Modules(model)
    with blamed(place / CONFIG):
        config = PeftConfig.read(objects.read(place / CONFIG))
    with safetensors.opened(place / WEIGHTS) as file:
        with blamed(place / WEIGHTS):
            names = _without_prefix(file.tensors)
        short = not any(name.startswith(modules.tops()) for name in names)
        with blamed(place / CONFIG):
            fitted = Fitted(config, modules, short)
            method = _method(fitted, model)
        with blamed(place / WEIGHTS):
            arrays = Tensors(file, names, fitted).ours()
            total = sum(array.size for array in arrays.values())
            restore(model, method, name, budget(total), lambda ours: arrays, trainable,
                    base_dtype)
    return list(adapters_of(model, name))


def _located(folder: str | os.PathLike[str]) -> Path:
    """Return the folder. Raises ValueError if it does not have the two files."""
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one with {CONFIG} and {WEIGHTS}")
    if not (place / WEIGHTS).is_file():
        pickle = (
            f": {PICKLE} is a pickle, which can run any code when it is read, so it is not read "
            "here: save the adapter again with a newer PEFT"
        ) * (place / PICKLE).exists()
        raise ValueError(f"{place} has no {WEIGHTS}{pickle}")
    return place


def _without_prefix(stored: Collection[str]) -> dict[str, str]:
    """Return the names without PEFT's prefix, each with its name in the file."""
    if strange := sorted(name for name in stored if not name.startswith(PREFIX)):
        raise ValueError(f"names that do not begin with {PREFIX!r}: {', '.join(strange)}")
    return {name.removeprefix(PREFIX): name for name in stored}


class Tensors:
    """The tensors in a file, by their names in `transformers`, with the prefix."""

    def __init__(
        self, file: safetensors.File, names: Mapping[str, str], fitted: Fitted
    ) -> None:
        prefix = fitted.modules.prefix if fitted.short else ""
        self.file, self.fitted = file, fitted
        self.stored = {f"{prefix}{name}": stored for name, stored in names.items()}
        self._check(fitted.shapes())

    def _check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless the file has what is wanted, and what it may repeat."""
        of = {name: self.fitted.repeats(name) for name in self.stored if name not in wanted}
        found = {name: self.file.tensors[stored] for name, stored in self.stored.items()}
        known = [name for name in of if of[name] is not None]
        check("its config on this model", found, wanted, known, self.fitted.form)
        copies = self.fitted.modules.copies
        whole = self.fitted.whole
        pairs = [*of.items(), *((at, copies[at]) for at in whole if copies.get(at) in whole)]
        for name, other in pairs:
            if other and not np.array_equal(array := self[name], self._or_base(other, array)):
                raise ValueError(
                    f"{name} is not equal to {other} in this file and model, and both are one "
                    "parameter here: the adapter is of another base, or they were trained apart")

    def __getitem__(self, name: str) -> np.ndarray:
        return self.file.array(self.stored[name])

    def _or_base(self, name: str, like: np.ndarray) -> np.ndarray:
        """Return the tensor, or the base's parameter rounded to the dtype of another one."""
        if name in self.stored:
            return self[name]
        return self.fitted.modules.joined(name, {}).astype(like.dtype)

    def ours(self) -> dict[str, np.ndarray]:
        """Return the numbers of each parameter that the method trains, by our names."""
        fitted, modules, result = self.fitted, self.fitted.modules, dict[str, np.ndarray]()
        for at in fitted.biases:
            path = at.removesuffix(".bias")
            middle = f"{path}.base_layer.bias"
            result |= modules.split(at, self[middle if middle in self.stored else at])
        for at in fitted.whole:
            result |= modules.split(modules.copies.get(at, at), self[at])
        for path, layer, r, alpha in fitted.targets:
            if path == modules.head:
                self._check_tied()
            elif layer.table:
                (at,) = layer.ours
                result[f"{at}.A"] = self[f"{path}.lora_embedding_A"]
                result[f"{at}.B"] = self[f"{path}.lora_embedding_B"]
            else:
                ends = np.cumsum(layer.rows)[:-1]
                result[f"{layer.ours[0]}.A"] = self[f"{path}.lora_A.weight"]
                rows = {"B": self[f"{path}.lora_B.weight"]}
                if fitted.config.use_dora:
                    rows["m"] = self[f"{path}.lora_magnitude_vector"]
                for letter, whole in rows.items():
                    result |= {f"{at}.{letter}": part
                               for at, part in zip(layer.ours, np.split(whole, ends))}
                if fitted.config.lora_bias:
                    c = self[f"{path}.lora_B.bias"].astype("float64")
                    scale = alpha / (math.sqrt(r) if fitted.config.use_rslora else r)
                    b = modules.joined(f"{path}.bias", result)
                    result |= modules.split(f"{path}.bias", b + scale * c)
        return result

    def _check_tied(self) -> None:
        """Raise ValueError unless the head's adapter is the transpose of the token table's."""
        head, targets = self.fitted.modules.head, {t.path: t for t in self.fitted.targets}
        table = self.fitted.modules.table
        same = targets[table][2:] == targets[head][2:] and all(
            np.array_equal(self[f"{head}.lora_{x}.weight"], self[f"{table}.lora_embedding_{y}"].T)
            for x, y in ("AB", "BA"))
        if not same:
            raise ValueError(
                f"the adapters of {head} and {table} are not each other's transpose, and both are "
                "one matrix here: train them with ensure_weight_tying"
            )


def _method(fitted: Fitted, model: Module) -> LoRAConfig:
    """Return our method with the settings of a config."""
    config, modules = fitted.config, fitted.modules
    ours = {at: target for target in fitted.targets for at in target.layer.ours
            if target.path != modules.head}
    fused = next((t.layer.ours for t in fitted.targets if len(t.layer.ours) > 1), ())
    lookup = modules.table in {t.path for t in fitted.targets} and fitted.tied is None
    lookup = lookup and bool(modules.head)
    settings: dict[str, Any] = {
        "r": config.r, "alpha": config.lora_alpha, "targets": _patterns(ours, adaptable(model)),
        "dropout": config.lora_dropout,
        "init": "kaiming" if config.init_lora_weights is True else "gaussian",
        "bias": {"none": "lora" if config.lora_bias else "none", "lora_only": "lora"}.get(
            config.bias, config.bias),
        "trainable": [*dict.fromkeys(
            exact(at) for name in fitted.whole
            for at in modules.parameters[modules.copies.get(name, name)])],
        "rank_pattern": {exact(at): t.r for at, t in ours.items() if t.r != config.r},
        "alpha_pattern": {
            exact(at): t.alpha for at, t in ours.items() if t.alpha != config.lora_alpha},
    }
    if fused or lookup or (config.use_dora and config.use_rslora):
        return PeftLoRA(
            **settings, fused=tuple(at.rpartition(".")[2] for at in fused), head=not lookup,
            dora=config.use_dora, rslora=config.use_rslora)
    kind = DoRA if config.use_dora else RsLoRA if config.use_rslora else LoRAConfig
    return kind(**settings)


def _patterns(paths: Collection[str], layers: Collection[str]) -> list[str]:
    """Return targets that match exactly these layers: their names if that is enough."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    short = all(any(matches(at, name) for name in names) == (at in paths) for at in layers)
    return names if short else [exact(path) for path in paths]
