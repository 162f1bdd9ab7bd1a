"""Whole models in files: save, load, and the base that comes with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import asnumpy
from ..data.tokenizer import BPE
from ..files import checkpoint
from ..words import our_words
from .families import FAMILIES, Model, family_of, smallest
from .gpt2 import GPT2

if TYPE_CHECKING:
    from pathlib import Path

BASES = {"shakespeare": "1.4 million parameters, pretrained on Shakespeare's plays"}


@our_words
def save_model(
    model: Model, path: str | os.PathLike[str], *, dtype: Any = None, about: Mapping[str, Any] = {}
) -> Path:
    """Write config, weights and tokenizer to one .npz; `dtype`: store the weights in it.

    None writes each as it is, a matrix that is stored in half precision as such; `load_model` gives
    all of them in one dtype again, with the same values.
    """
    if model.locked:
        raise RuntimeError(
            "save_model: it would write the merged weights, without the adapters, and does not: "
            f"{model.locked}; to keep them merged, lora.merge(model) and save"
        )
    arrays = {name: asnumpy(p.data) for name, p in model.named_parameters()}
    if odd := arrays.keys() ^ {name for name, _ in smallest(model.config).named_parameters()}:
        raise ValueError(
            f"save_model: {sorted(odd)[0]} is not a plain {type(model).__name__}'s parameter: "
            "merge or detach the adapters first, or save them alone with lora.save"
        )
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    merges = model.tokenizer.merges if isinstance(model.tokenizer, BPE) else None
    config = {"family": family_of(model.config), "config": asdict(model.config)}
    return checkpoint.write(path, arrays, {"kind": "model", **config, "merges": merges, **about})


@our_words
def load_model(path: str | os.PathLike[str], *, dtype: Any = "float32") -> Any:
    """The model in a file that `save_model` made, its `.tokenizer` with it. Dropout is off.

    Raises ValueError, in the file's name, for what is no such file, or does not fit together.
    """
    with checkpoint.opened(path, "model") as file, file.blamed():
        family, config = file.facts(family=str, config=dict)
        if family not in FAMILIES:
            raise ValueError(
                f"it is a model of the family {family!r}, and what can be read is "
                f"{', '.join(FAMILIES)}"
            )
        kind, make = FAMILIES[family]
        model = make(kind(**config), rng=file.budget(), dtype=dtype)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        model.load_state_dict(file.arrays(shapes))
        merges = file.meta.get("merges")
        model.tokenizer = None if merges is None else BPE(merges)
        if merges is not None and model.tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"its tokenizer has {model.tokenizer.vocab_size:,} tokens, its model "
                f"{model.config.vocab_size:,}"
            )
    return model.eval()


def base_path(name: str) -> Path:
    """Where the built-in base `name` lies."""
    if name not in BASES:
        raise ValueError(f"there is no built-in base {name!r}: there are {', '.join(BASES)}")
    from pathlib import Path

    return Path(__file__).parent.parent / "data" / "bases" / f"{name}.npz"


@our_words
def load_base(name: str = "shakespeare", *, dtype: Any = "float32") -> GPT2:
    """The built-in pretrained base; `minilora pretrain` is how it was made."""
    base: GPT2 = load_model(base_path(name), dtype=np.dtype(dtype))
    return base
