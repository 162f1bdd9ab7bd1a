"""A config on a model: the layers with an adapter, and the tensors that a file of it has."""

from __future__ import annotations

import re
from typing import NamedTuple

from ...checks import warn
from . import matching
from .config import PeftConfig
from .modules import Layer, Modules

TIED = "embed_tokens", "lm_head"  # the names by which ensure_weight_tying knows a tied table


class Target(NamedTuple):
    """A layer with an adapter, by its path there: rank r, and alpha as the config has it."""

    path: str
    layer: Layer
    r: int
    alpha: float


class Fitted:
    """What a config says about a model. All names are those of `transformers`, with the prefix.

    short     the file is of a model without a head, whose names have no prefix
    targets   the layers with an adapter
    tied      of these, the output head that is one matrix with the token table; None: it has none
    biases, whole   the trained biases, and all parameters that are trained as they are
    """

    def __init__(self, config: PeftConfig, modules: Modules, short: bool) -> None:
        self.config, self.modules, self.short = config, modules, short
        self.targets = [
            Target(path, layer, matching.first(config.rank_pattern, self.form(path), config.r),
                   matching.first(config.alpha_pattern, self.form(path), config.lora_alpha))
            for path, layer in self._targeted().items()
        ]
        self.tied = next((t for t in self.targets if t.path == modules.head), None)
        paths = {self.form(path): path for path in modules.modules() if self.exists(path)}
        saved = self._with_tied({paths[path] for path in matching.saved(config, paths)})
        self.whole = [at for at in [*modules.parameters, *modules.copies]
                      if self.exists(at) and at.startswith(tuple(f"{path}." for path in saved))]
        adapted = {f"{target.path}.bias" for target in self.targets}
        self.biases = [] if config.bias == "none" else [
            at for at in modules.parameters if at.endswith(".bias") and self.exists(at)
            and (config.bias == "all" or at in adapted)]
        self._check()

    def form(self, name: str) -> str:
        """Return the name as it is in the file."""
        return name.removeprefix(self.modules.prefix) if self.short else name

    def exists(self, name: str) -> bool:
        """Return whether the file's model has this module: without a prefix, it has no head."""
        return not self.short or name.startswith(self.modules.prefix)

    def _targeted(self) -> dict[str, Layer]:
        config, modules = self.config, self.modules
        layers = dict(modules.layers)
        if modules.head:  # it has no layer of its own here
            layers[modules.head] = layers[modules.table]._replace(table=False)
        layers = {path: layer for path, layer in layers.items() if self.exists(path)}
        names = {self.form(path): path for path in [*layers, *modules.apart]}
        linear = [name for name, path in names.items() if path in layers
                  and not layers[path].table and path not in (modules.head, "lm_head")]
        chosen = {names[name] for name in matching.targeted(config, names, linear)}
        for path in sorted(chosen & modules.apart.keys()):
            raise ValueError(f"{path} cannot have an adapter here: {modules.apart[path]}")
        chosen = self._with_tied(chosen)
        if not chosen:
            ends = ", ".join(sorted({path.rpartition(".")[2] for path in layers}))
            raise ValueError(
                f"no layer of this model, a {modules.architecture} there, is among its "
                f"target_modules {config.target_modules!r}: its layers are called {ends}"
            )
        return {path: layer for path, layer in layers.items() if path in chosen}

    def _with_tied(self, paths: set[str]) -> set[str]:
        """Return the modules, and with a tied one its other half, if ensure_weight_tying is set."""
        modules, tied = self.modules, {self.modules.table, self.modules.head}
        ensured = self.config.ensure_weight_tying and modules.head and self.exists(modules.head)
        known = any(path.rpartition(".")[2] in TIED for path in paths & tied)
        return paths | tied if ensured and known else paths

    def _check(self) -> None:
        config, modules = self.config, self.modules
        for path, layer, _, _ in self.targets:
            if layer.table and config.use_dora:
                raise ValueError(f"use_dora on a table, {path}, is not computed here")
            if config.lora_bias and not layer.table and f"{path}.bias" not in modules.parameters:
                raise ValueError(f"lora_bias on {path}, which has no bias, is not computed here")
        if self.tied and modules.table not in {target.path for target in self.targets}:
            raise ValueError(
                f"{modules.head} and {modules.table} are one matrix here: adapt both of them, or "
                "the table alone"
            )
        table, head = f"{modules.table}.weight", f"{modules.head}.weight"
        for one, other in (table, head), (head, table):
            if self.exists(modules.head) and one in self.whole and other not in self.whole:
                raise ValueError(
                    f"modules_to_save trains {one} apart from {other}, and they are one parameter "
                    "here: train both, with ensure_weight_tying, or neither"
                )
        for pattern in {*config.rank_pattern, *config.alpha_pattern}:
            if not any(matching.first({pattern: 1}, self.form(t.path), 0) for t in self.targets):
                warn(f"load_peft: the pattern {pattern!r} has no effect: no adapted layer matches")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of each tensor that the file must have."""
        config, modules, result = self.config, self.modules, dict[str, tuple[int, ...]]()
        paths = {target.path for target in self.targets}
        for path, layer, r, _ in self.targets:
            n, d = layer.shape
            if layer.table:
                result |= {f"{path}.lora_embedding_A": (r, n), f"{path}.lora_embedding_B": (d, r)}
                continue
            result |= {f"{path}.lora_A.weight": (r, d), f"{path}.lora_B.weight": (n, r)}
            if config.use_dora:
                result[f"{path}.lora_magnitude_vector"] = (n,)
            if config.lora_bias:
                result[f"{path}.lora_B.bias"] = (n,)
        for at in self.biases:
            path = at.removesuffix(".bias")
            result[f"{path}.base_layer.bias" if path in paths else at] = modules.shape(at)
        for at in self.whole:
            result[at] = modules.shape(modules.copies.get(at, at))
        return result

    def repeats(self, name: str) -> str | None:
        """Return which tensor or parameter the file has once more under this name; None: neither.

        "": a value that nothing uses, as PEFT writes with bias="all" beside modules_to_save.
        """
        modules, paths = self.modules, {target.path for target in self.targets}
        path = name.removesuffix(".base_layer.weight")
        if path != name and path in paths and (
            path in (modules.table, modules.head) or path.rpartition(".")[2] in TIED
        ):
            at = f"{path}.weight"
            return modules.copies.get(at, at)
        if match := re.fullmatch(r"(.+)\.(original_module|modules_to_save)\.(?:.+\.)?(.+)", name):
            for at in self.whole:
                if at.startswith(f"{match[1]}.") and name.endswith(at[len(match[1]) :]):
                    return at if match[2] == "modules_to_save" else ""
            return None
        return modules.copies[name] if modules.copies.get(name) in self.biases else None
