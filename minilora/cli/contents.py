"""What is in a file that minilora wrote: facts for `minilora info FILE`, read with all checks."""

from __future__ import annotations

import os
from typing import Any

from ..adapters import files
from ..data.words import SPECIAL
from ..files import checkpoint
from ..lora import adaptable
from ..models.pretrained import BASES, load_base

SETTINGS = ("r", "alpha", "targets", "lp", "li", "layers")  # of a method, shown first


def contents(path: str) -> dict[str, Any]:
    """Return the facts. Raises ValueError for a file that minilora did not write, or is damaged."""
    with checkpoint.opened(path) as file, file.blamed():
        numbers = [file.array(name) for name in sorted(file.shapes)]  # with their checksums
        facts = {
            "file": path, "kind": file.kind, "made_by": file.made_by,
            "bytes": os.path.getsize(path), "arrays": len(numbers),
            "numbers": sum(array.size for array in numbers),
            "dtype": sorted({str(array.dtype) for array in numbers}),
        }
        if file.kind == "model":
            return facts | _model(file)
        if file.kind in files.KINDS:
            return facts | _adapter(file) | {"fingerprint": checkpoint.fingerprint(numbers)}
        if file.kind == "run":
            return facts | _run(file)
        return facts


def _model(file: checkpoint.File) -> dict[str, Any]:
    family, config = file.facts(family=str, config=dict)
    tokens = 0
    if file.meta.get("merges") is not None:
        tokens = 256 + len(file.facts(merges=list)[0])
    if "words" in file.meta:
        tokens = len(SPECIAL) + len(file.facts(words=list)[0])
    known = {"kind", "family", "config", "merges", "words", "merged"}
    about = {name: value for name, value in file.meta.items() if name not in known}
    tokenizer = f"{tokens:,} tokens" if tokens else "none"
    return {"family": family, "sizes": config, "tokenizer": tokenizer,
            "merged": file.meta.get("merged", []), "about": about}


def _run(file: checkpoint.File) -> dict[str, Any]:
    settings, done = file.facts(what=dict, done=int)
    of = {name: settings.get(name, "unknown") for name in ("steps", "model", "optimizer")}
    about = {name[6:]: value for name, value in settings.items() if name.startswith("about.")}
    losses = file.array("losses").tolist()
    return {"steps_done": done, **of, "last_loss": losses[-1] if losses else None, "about": about}


def _adapter(file: checkpoint.File) -> dict[str, Any]:
    of_0_1_0 = "layers" in file.meta  # from its lora.save
    kept, scales = ("config", "layers") if of_0_1_0 else ("settings", "scales")
    name, base, settings = file.facts(name=str, base=str, **{kept: dict})
    layers = [*file.facts(**{scales: dict})[0]] if scales in file.meta else []
    first = {setting: settings[setting] for setting in SETTINGS if setting in settings}
    rest = {setting: value for setting, value in settings.items() if setting not in first}
    return {
        "name": name, "method": "lora" if of_0_1_0 else file.facts(method=str)[0], **first,
        "settings": rest, "adapted_layers": len(layers), "base": base,
        "base_is": _base(layers, base),
    }


def _base(layers: list[str], fingerprint: str) -> str:
    """Return the built-in base with this fingerprint at these layers, or "another base"."""
    for name in BASES:
        model = load_base(name)
        if set(layers) <= adaptable(model).keys():
            for dtype, how in (("float32", ""), ("float16", ", in float16")):
                if files.fingerprint(model, layers, dtype) == fingerprint:
                    return f"{name}{how}"
    return "another base"
