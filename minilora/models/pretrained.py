"""Models in files: save, load, and the base model that comes with the package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import slots
from ..backend import Rng, asnumpy
from ..checks import integer
from ..data.tokenizers import BPE, Tokenizer
from ..data.words import SPECIAL, Words
from ..files import checkpoint
from ..words import our_words
from .encoder import Encoder
from .families import FAMILIES, Model, build, family_of, smallest
from .gpt2 import GPT2

if TYPE_CHECKING:
    from pathlib import Path

BASES = {
    "shakespeare": "1.4 million parameters, pretrained on Shakespeare's plays",
    "mini-decoder": "0.1 million parameters, for the tasks of a decoder, such as mini-e2e",
    "mini-encoder": "0.1 million parameters, for the tasks of an encoder, such as mini-cola",
}


@our_words
def with_head(base: Encoder, num_labels: int, rng: Rng = None) -> Any:
    """Return a copy of an encoder with a new classifier in place of its head (Devlin et al. §4.1).

    num_labels: the number of classes, or 1 for a number to predict. The encoder's weights are those
    of the base, and the first layer of the classifier is the base's pooler if it has one; the rest
    is drawn from rng. Dropout is as in the base's config.
    Raises TypeError for another model than an encoder, ValueError for one with adapters.
    """
    if not isinstance(base, Encoder):
        raise TypeError(
            f"with_head: {type(base).__name__} is no encoder: give a Bert, Roberta or Deberta"
        )
    num_labels = integer("with_head", "num_labels", num_labels, 1)
    config = replace(base.config, num_labels=num_labels, head="words")
    model = build(config, rng=rng, dtype=base.tok.W.dtype, recompute=base.recompute)
    state = model.state_dict()
    head = "head.out." if base.config.head == "pooler" else "head."
    weights = {name: x for name, x in base.state_dict().items() if not name.startswith(head)}
    if changed := weights.keys() ^ {name for name in state if not name.startswith(head)}:
        raise ValueError(
            f"with_head: {sorted(changed)[0]} is no parameter of a base {type(base).__name__}: "
            "merge or detach the adapters first"
        )
    model.load_state_dict({**state, **weights})
    model.tokenizer = base.tokenizer
    return model


@our_words
def save_model(
    model: Model, path: str | os.PathLike[str], *, dtype: Any = None, about: Mapping[str, Any] = {}
) -> Path:
    """Write config, weights and tokenizer to one .npz; return its path.

    dtype: convert the weights to it; None: write each in its own, so a matrix in half precision
    stays so. `load_model` converts all of them to one dtype. about: more facts for the file.
    Raises RuntimeError inside `lora.merged`, ValueError for a model with adapters or with the
    tokenizer of another library's files, and TypeError for a model of your own, which `load_model`
    could not build again.
    """
    if not isinstance(model, Model):
        raise TypeError(
            f"save_model: {type(model).__name__} is not one of {', '.join(FAMILIES)}: save the "
            "arrays of your own model as np.savez(path, **model.state_dict()), and read them with "
            "model.load_state_dict(dict(np.load(path)))"
        )
    arrays = base_arrays(model, "save_model")
    if dtype is not None:
        arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    merges = None
    if isinstance(model.tokenizer, Tokenizer):
        if not isinstance(model.tokenizer, BPE) or not model.tokenizer.bare:
            raise ValueError(
                f"save_model: {path} would have no room for this {type(model.tokenizer).__name__} "
                "with tokens of its own: write a folder with model.save_pretrained(folder), which "
                "load_model reads, too"
            )
        merges = model.tokenizer.merges
    tokenizer: dict[str, Any] = {"merges": merges}
    if isinstance(model.tokenizer, Words):
        tokenizer["words"] = model.tokenizer.words[len(SPECIAL) :]
    config = {"family": family_of(model.config), "config": asdict(model.config)}
    return checkpoint.write(path, arrays, {"kind": "model", **config, **tokenizer, **about})


def base_arrays(model: Model, who: str) -> dict[str, np.ndarray]:
    """Return every parameter of a model without adapters, by name, on the host; see `save_model`
    for the errors.
    """
    if model.locked:
        raise RuntimeError(
            f"{who}: the merged weights would be saved without the adapters: "
            f"{model.locked}; to save them merged, call lora.merge(model) first"
        )
    arrays = {name: asnumpy(p.data) for name, p in model.named_parameters()}
    if changed := arrays.keys() ^ {name for name, _ in smallest(model.config).named_parameters()}:
        raise ValueError(
            f"{who}: {sorted(changed)[0]} is no parameter of a base {type(model).__name__}: "
            "merge or detach the adapters first, or save them alone with lora.save"
        )
    return arrays


@our_words
def load_model(path: str | os.PathLike[str], *, dtype: Any = "float32") -> Any:
    """Return the model in a file from `save_model`, with its `.tokenizer`. Dropout is off.

    path: also a folder as Hugging Face lays it out (see `from_pretrained`), or a .gguf file (see
    `Llama.from_gguf`). dtype: that of the weights. Raises a ValueError that names the file if it is
    not such a file, or if its parts do not fit together.
    """
    if os.path.isdir(path):
        return slots.interop("load")(path, dtype=dtype)
    if os.fspath(path).endswith(".gguf"):
        return slots.interop("load_gguf")(path, dtype)
    with checkpoint.opened(path, "model") as file, file.blamed():
        family, config = file.facts(family=str, config=dict)
        if family not in FAMILIES:
            raise ValueError(
                f"unknown model family {family!r}: load_model reads {', '.join(FAMILIES)}"
            )
        kind, make = FAMILIES[family]
        model = make(kind(**config), rng=file.budget(), dtype=dtype)
        shapes = {name: p.shape for name, p in model.named_parameters()}
        model.load_state_dict(file.arrays(shapes))
        merges = file.meta.get("merges")
        tokenizer: Any = None if merges is None else BPE(merges)
        if "words" in file.meta:
            tokenizer = Words(file.facts(words=list)[0])
        give_tokenizer(model, tokenizer)
    return model.eval()


def give_tokenizer(model: Model, tokenizer: Any) -> None:
    """Set the tokenizer of a model; None: it has none. ValueError if it has too many tokens."""
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"its tokenizer has {tokenizer.vocab_size:,} tokens, but its model has only "
            f"{model.config.vocab_size:,}"
        )
    model.tokenizer = tokenizer


def base_path(name: str) -> Path:
    """Return the path of the built-in base `name`."""
    if name not in BASES:
        raise ValueError(f"unknown built-in base {name!r}: choose {', '.join(BASES)}")
    from pathlib import Path

    return Path(__file__).parent.parent / "data" / "bases" / f"{name}.npz"


@our_words
def load_base(name: str = "shakespeare", *, dtype: Any = "float32") -> GPT2:
    """Return the built-in pretrained base; the command `minilora pretrain` created it."""
    base: GPT2 = load_model(base_path(name), dtype=np.dtype(dtype))
    return base
