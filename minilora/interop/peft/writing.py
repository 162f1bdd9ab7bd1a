"""Write an adapter as PEFT does: adapter_config.json, adapter_model.safetensors, a README.md."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ... import __version__
from ...adapters.files import content
from ...adapters.patterns import first
from ...adapters.registry import adapters_of
from ...backend import asnumpy
from ...checks import warn
from ...files import atomic, folders, safetensors
from ...lora.config import LoRAConfig
from ...methods.dora import DoRA
from ...methods.peft_lora import LoRALookup, PeftLoRA
from ...methods.rslora import RsLoRA
from ...nn import Module
from ...words import our_words
from . import matching
from .config import CONFIG, PREFIX, WEIGHTS, PeftConfig
from .modules import Layer, Modules

Arrays = dict[str, np.ndarray]


@our_words
def save_peft(model: Module, folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """Write an adapter into a new folder that PEFT loads; return the folder's path.

    name: the adapter; None if only one is attached. q and v of a GPT-2, which are columns of one
    matrix there, become one adapter of rank 2 r and 2 alpha, exactly; PiSSA becomes LoRA of rank
    2 r. Raises ValueError for a method that is not LoRA, for a layer that PEFT cannot adapt in the
    same way, and for a folder that is not empty. The folder is complete, or it is not there.
    """
    folders.check(folder)
    modules = Modules(model)
    name, method, arrays = content(model, name, "save_peft")
    known = type(method) in (LoRAConfig, RsLoRA, DoRA, PeftLoRA)
    if not isinstance(method, LoRAConfig) or not known:
        raise ValueError(
            f"save_peft: PEFT has no {method.called!r}: save it as a .npz file, by lora.save"
        )
    config, tensors = Written(model, name, method, arrays, modules).content()
    library = f"transformers.models.{modules.family}.modeling_{modules.family}"
    notes = {} if config.task_type else {"auto_mapping": {
        "base_model_class": modules.architecture, "parent_library": library}}
    with folders.writing(folder) as place:
        safetensors.write(place / WEIGHTS, tensors)
        settings = json.dumps(config.written(**notes), indent=2, sort_keys=True)
        for file, text in {"README.md": card(config, modules), CONFIG: settings}.items():
            with atomic.writing(place / file) as stream:
                stream.write(f"{text}\n".encode())
    return Path(folder)


def card(config: PeftConfig, modules: Modules) -> str:
    """Return a short model card, with the header that the hub reads."""
    return f"""\
---
library_name: peft
tags:
- lora
---

# LoRA adapter of a {modules.architecture}

Rank {config.r}, alpha {config.lora_alpha:g}. Written by minilora {__version__}. To load it:

    from peft import PeftModel
    model = PeftModel.from_pretrained(base, "this folder")
"""


class Update(NamedTuple):
    """An adapter of a module of theirs: A (r, k), B (d, r), DoRA's m (d,) or None, and alpha."""

    A: np.ndarray
    B: np.ndarray
    m: np.ndarray | None
    alpha: float


class Written:
    """An adapter of ours, in the names of `transformers`."""

    def __init__(
        self, model: Module, name: str, method: LoRAConfig, arrays: Mapping[str, Any],
        modules: Modules,
    ) -> None:
        self.method, self.modules = method, modules
        self.parts = adapters_of(model, name)
        self.arrays = {at: asnumpy(array) for at, array in arrays.items()}
        self.rslora = isinstance(method, RsLoRA) or getattr(method, "rslora", False)
        self.dora = isinstance(method, DoRA) or getattr(method, "dora", False)
        self.layers = {path: layer for path, layer in modules.layers.items()
                       if any(at in self.parts for at in layer.ours)}
        known = {at for layer in self.layers.values() for at in layer.ours}
        if strange := sorted(self.parts.keys() - known):
            raise ValueError(
                f"save_peft: PEFT cannot adapt {', '.join(strange)} as it is adapted here: save "
                "the adapter as a .npz file, by lora.save"
            )
        own: dict[int, str] = {}  # an A -> the name of its array, for layers that share it
        self.own = {at: own.setdefault(id(part.A), f"{at}.A")  # type: ignore[attr-defined]
                    for at, part in self.parts.items()}

    def content(self) -> tuple[PeftConfig, Arrays]:
        """Return the settings and the tensors of the files."""
        method, modules = self.method, self.modules
        updates = {path: self.update(layer) for path, layer in self.layers.items()}
        tied = modules.table in updates and modules.head and not isinstance(
            self.parts[self.layers[modules.table].ours[0]], LoRALookup)
        if tied:
            warn(
                f"save_peft: PEFT holds {modules.table} and the head {modules.head} as two "
                "adapters, and its merge of them into one matrix is wrong: merge here instead"
            )
        tensors = Arrays()
        for path, (A, B, m, alpha) in list(updates.items()):
            if self.layers[path].table:
                tensors |= {f"{path}.lora_embedding_A": A, f"{path}.lora_embedding_B": B}
            else:
                tensors |= {f"{path}.lora_A.weight": A, f"{path}.lora_B.weight": B}
            if m is not None:
                tensors[f"{path}.lora_magnitude_vector"] = m
            if path == modules.table and tied:  # the head is a matrix of its own there
                updates[modules.head] = Update(B.T, A.T, None, alpha)
                tensors |= {f"{modules.head}.lora_A.weight": B.T,
                            f"{modules.head}.lora_B.weight": A.T}
        bias, saved = self.copies(tensors)
        ranks = {path: len(u.A) for path, u in updates.items()}
        alphas = {path: u.alpha for path, u in updates.items()}
        (r, _), = Counter(ranks.values()).most_common(1)
        (alpha, _), = Counter(alphas.values()).most_common(1)
        others = [*modules.layers, *modules.apart, *filter(None, [modules.head]),
                  f"{modules.prefix}pooler.dense"]
        decoder = modules.architecture.endswith(("LMHeadModel", "ForCausalLM"))
        config = PeftConfig(
            r=r, lora_alpha=alpha,
            target_modules=matching.shortest([*map(self.named, updates)], map(self.named, others)),
            modules_to_save=[*map(self.named, saved)] or None,
            rank_pattern={re.escape(self.named(at)): n for at, n in ranks.items() if n != r},
            alpha_pattern={re.escape(self.named(at)): n for at, n in alphas.items() if n != alpha},
            bias=bias, lora_dropout=method.dropout, fan_in_fan_out=modules.turned,
            use_dora=self.dora, use_rslora=self.rslora,
            init_lora_weights=True if method.init == "kaiming" else method.init,
            task_type="SEQ_CLS" if "classifier" in saved else "CAUSAL_LM" if decoder else None,
        )
        return config, {f"{PREFIX}{self.named(at)}": array for at, array in tensors.items()}

    def named(self, name: str) -> str:
        """Return the name in a file: that of a model without a head has no prefix."""
        return name.removeprefix(self.modules.prefix) if self.modules.bare else name

    def update(self, layer: Layer) -> Update:
        """Return the adapter of a module: that of our layer, or those of several in blocks.

        With A1 and A2: A = [A1; A2], B = [[B1, 0], [0, 0], [0, B2]], rows as the layers'. Layers
        that share an A have the same columns of B.
        """
        owners = list(dict.fromkeys(self.own[at] for at in layer.ours if at in self.parts))
        sizes = [len(self.arrays[owner]) for owner in owners]
        ends = dict(zip(owners, np.cumsum(sizes)))
        A = np.concatenate([self.arrays[owner] for owner in owners])
        if layer.table:
            return Update(A, self.arrays[f"{layer.ours[0]}.B"], None, self.alpha(layer.ours[0]))
        B, lengths = np.zeros((sum(layer.rows), len(A)), A.dtype), []
        start, scale = 0, 0.0
        for at, n in zip(layer.ours, layer.rows):
            if at in self.parts:
                mine, end = self.arrays[f"{at}.B"], ends[self.own[at]]
                own = self.scale(at)
                scale = scale or own
                B[start : start + n, end - mine.shape[1] : end] = (
                    mine if own == scale else mine * (own / scale))
            if self.dora:
                m = self.arrays.get(f"{at}.m")
                W = asnumpy(self.modules.base[f"{at}.W"][1].data).astype(A.dtype)
                lengths.append(np.sqrt((W * W).sum(axis=1)) if m is None else m)
            start += n
        leader = next(at for at in layer.ours if at in self.parts)
        times = len(A) / sizes[0]
        alpha = self.alpha(leader) * (math.sqrt(times) if self.rslora else times)
        return Update(A, B, np.concatenate(lengths) if lengths else None, alpha)

    def alpha(self, at: str) -> float:
        return float(first(self.method.alpha_pattern, at, self.method.alpha))

    def scale(self, at: str) -> float:
        r = self.arrays[f"{at}.B"].shape[1]
        return self.alpha(at) / (math.sqrt(r) if self.rslora else r)

    def copies(self, tensors: Arrays) -> tuple[str, list[str]]:
        """Add the trained copies to the tensors; return PEFT's `bias` and `modules_to_save`.

        PEFT trains biases, and whole modules. So what is trained here alone is written with the
        rest of its module, which is as in the base.
        """
        modules = self.modules
        own = {at: array for at, array in self.arrays.items() if at in modules.base}
        trained = [name for name, ours in modules.parameters.items() if own.keys() & {*ours}]
        bias, biases = "none", list[str]()
        near = [f"{path}.bias" for path in self.layers if f"{path}.bias" in modules.parameters]
        if self.method.bias == "all":
            bias, biases = "all", [at for at in modules.parameters if at.endswith(".bias")]
        elif {*trained} & {*near}:
            bias, biases = "lora_only", near
        for at in biases:
            path = at.removesuffix(".bias")
            middle = ".base_layer" if path in self.layers else ""
            tensors[f"{path}{middle}.bias"] = modules.joined(at, own)
        saved = self.whole([at for at in trained if at not in biases])
        for at in [*modules.parameters, *modules.copies]:
            if at.startswith(tuple(f"{path}." for path in saved)):
                tensors[at] = modules.joined(modules.copies.get(at, at), own)
        return bias, saved

    def whole(self, trained: list[str]) -> list[str]:
        """Return the modules that have these parameters. ValueError if one has more than its own:
        an adapter, or a head that is the token table.
        """
        modules, adapted = self.modules, self.layers
        paths = {at.rpartition(".")[0] for at in trained}
        if modules.table in paths and modules.head:  # then all of the head is trained
            repeated = {*modules.copies.values()}
            paths = {at.rpartition(".")[0] for at in trained if at not in repeated}
            paths |= {modules.table, modules.head}
        inside = {path for path in paths if path.startswith("classifier.")}
        if inside and not any(path.startswith("classifier") for path in adapted):
            paths = paths - inside | {"classifier"}  # PEFT looks for it by this name
        for path in paths:
            others = [at for at in adapted if f"{at}.".startswith(f"{path}.")]
            if modules.head.startswith(f"{path}."):
                others.append(f"{modules.head}, the token table")
            if others:
                raise ValueError(
                    f"save_peft: PEFT trains {path} only as a whole, with {others[0]}: save the "
                    "adapter as a .npz file, by lora.save"
                )
        return sorted(paths)
