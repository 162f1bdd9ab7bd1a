"""Whole models in files: save, load, and the base that comes with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import checkpoint
from ..backend import asarray, asnumpy
from ..config import GPT2Config
from ..data.tokenizer import BPE
from .gpt2 import GPT2

if TYPE_CHECKING:
    from pathlib import Path

BASES = {"shakespeare": "1.4 million parameters, pretrained on Shakespeare's plays"}


def save_model(
    model: GPT2, path: str | os.PathLike[str], *, dtype: Any = None, about: Mapping[str, Any] = {}
) -> Path:
    """Write config, weights and tokenizer to one .npz; `dtype`: store the weights in it.

    None writes each as it is, a matrix that is stored in half precision as such; `load_model` gives
    all of them in one dtype again, with the same values.
    """
    arrays = {name: asnumpy(p.data) for name, p in model.named_parameters()}
    odd = arrays.keys() ^ {name for name, _ in GPT2(model.config, rng=0).named_parameters()}
    if odd:
        raise ValueError(
            f"save_model: {sorted(odd)[0]} is not a plain GPT-2's parameter: merge or "
            "detach the adapters first, or save them alone with lora.save"
        )
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    merges = model.tokenizer.merges if isinstance(model.tokenizer, BPE) else None
    meta = {"kind": "model", "family": "gpt2", "config": asdict(model.config), "merges": merges}
    return checkpoint.write(path, arrays, {**meta, **about})


def load_model(path: str | os.PathLike[str], *, dtype: Any = "float32") -> GPT2:
    """The GPT-2 in a file that `save_model` made, its `.tokenizer` with it. Dropout is off."""
    arrays, meta = checkpoint.read(path, kind="model")
    model = GPT2(GPT2Config(**meta["config"]), rng=0, dtype=dtype)
    model.load_state_dict({name: asarray(array.astype(dtype)) for name, array in arrays.items()})
    model.tokenizer = BPE(meta["merges"]) if meta["merges"] is not None else None
    model.eval()
    return model


def base_path(name: str) -> Path:
    """Where the built-in base `name` lies."""
    if name not in BASES:
        raise ValueError(f"there is no built-in base {name!r}: there are {', '.join(BASES)}")
    from pathlib import Path

    return Path(__file__).parent.parent / "data" / "bases" / f"{name}.npz"


def load_base(name: str = "shakespeare", *, dtype: Any = "float32") -> GPT2:
    """The built-in pretrained base; `minilora pretrain` is how it was made."""
    return load_model(base_path(name), dtype=np.dtype(dtype))
