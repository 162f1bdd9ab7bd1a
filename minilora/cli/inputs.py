"""What a command is given: a base, a text, sizes, an adapter; refused where it cannot be meant."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, lora
from ..adapters.patterns import matching
from ..backend import asnumpy
from ..files import checkpoint
from ..models.gpt2 import GPT2
from ..models.pretrained import BASES, load_base, load_model

USUAL = {"r": 8, "alpha": 16.0, "targets": ("q", "v")}  # where the command line says nothing

Say = Callable[[str], None]
BATCH, WINDOW = 8, 128


def base(args: argparse.Namespace) -> GPT2:
    """The base, with its tokenizer."""
    if args.base not in BASES and not Path(args.base).exists():
        raise ValueError(
            f"there is no file {args.base}, nor a built-in base of that name: there is "
            f"{', '.join(BASES)}"
        )
    load, dtype = load_base if args.base in BASES else load_model, getattr(args, "dtype", "float32")
    model = load(args.base, dtype=dtype)
    if model.tokenizer is None:
        raise ValueError(
            f"{args.base} has no tokenizer with it: set model.tokenizer before save_model"
        )
    return model


def text(name: str) -> str:
    """The built-in text of this name, or what is in the file."""
    if name in data.TEXTS:
        return data.load_text(name)
    path = Path(name)
    if not path.exists():
        raise ValueError(
            f"there is no file {name}, nor a built-in text of that name: there are "
            f"{', '.join(data.TEXTS)}"
        )
    if not (path.is_file() or path.is_fifo()):
        raise ValueError(f"{name} is a {'folder' if path.is_dir() else 'device'}: give a text file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}: "
            "save it as UTF-8"
        ) from None


def parts(name: str, words: str, model: GPT2, window: int) -> tuple[Any, Any]:
    """The tokens of a text to train on, and those held out; each has a window, or it is told."""
    if len(words) < 2:
        raise ValueError(f"{name} is {'one character' if words else 'empty'}: give a longer text")
    training, held_out = (model.tokenizer.encode(part) for part in data.split(words))
    most = min(len(training), len(held_out)) - 1
    if most < window:
        raise ValueError(
            f"{name} has too few tokens: {len(training):,} to train on, {len(held_out):,} held out"
            f", and a window of {window} takes {window + 1} of each: give a longer text"
            + (f", or --window {most} or less" if most > 0 else "")
        )
    return training, held_out


def sizes(args: argparse.Namespace, model: GPT2) -> tuple[int, int]:
    """Sequences of a batch, tokens of a sequence."""
    most = model.config.n_positions
    within(args.window, args.base, most)
    return args.batch or BATCH, args.window or min(WINDOW, most)


def within(window: int | None, name: str, most: int) -> None:
    """A window that this model can read."""
    if window is not None and window > most:
        raise ValueError(f"--window {window}: {name} reads {most} tokens: give {most} or less")


def settings(args: argparse.Namespace, model: GPT2) -> lora.LoRAConfig:
    """What to adapt and how, of a model that has such layers."""
    matching(lora.adaptable(model), args.targets, "--targets: no layer")
    return lora.LoRAConfig(args.r, args.alpha, args.targets, getattr(args, "dropout", 0.0))


def replacing(out: Path, kind: str, say: Say) -> None:
    """Is there a file already? One of the same kind will be replaced, another is left alone."""
    if not out.exists():
        return
    try:
        with checkpoint.opened(out, kind):
            say(f"{out} is there, and will be replaced")
    except ValueError as error:
        raise ValueError(
            f"--out {out} is there, and holds no {kind}: give another name, or remove it first"
        ) from error


def adapt(model: GPT2, args: argparse.Namespace, strict: bool) -> str:
    """Load the adapter; returns its fingerprint. Over another base it is refused, if `strict`."""
    with checkpoint.opened(args.adapter, "adapter") as file:
        own = checkpoint.fingerprint(file.array(name) for name in sorted(file.shapes))
        if own in held(args.base):
            odd = f"{args.base} already holds {args.adapter}: use it without an adapter"
        else:
            odd = _apart(model, args, *file.facts(layers=dict, base=str))
    if odd and strict:
        raise ValueError(odd)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load: .* trained on another base")  # it is told here
        lora.load(model, args.adapter, base_dtype=args.base_dtype)
    if odd:
        warnings.warn(odd, stacklevel=2)
    return own


def held(name: str) -> list[str]:
    """The fingerprints of the adapters that were merged into a base."""
    if name in BASES:
        return []
    with checkpoint.opened(name, "model") as file:
        merged: list[str] = file.facts(merged=list)[0] if "merged" in file.meta else []
        return merged


def _apart(model: GPT2, args: argparse.Namespace, layers: dict[str, Any], trained_over: str) -> str:
    """Why the base is not the one that the adapter was trained over, and what to do; or nothing."""
    here = lora.adaptable(model)
    if not layers.keys() <= here.keys():
        return ""  # lora.load says what does not fit
    matrices = [asnumpy(here[path].W.data) for path in layers]
    with np.errstate(over="ignore"):
        prints = {
            dtype: checkpoint.fingerprint(matrix.astype(dtype) for matrix in matrices)
            for dtype in ("float16", "float32", "float64")
        }
    if trained_over == prints.pop("float16"):
        kept, remedy = "in half precision", "give --base-dtype float16"
        wrong = not args.base_dtype
    elif trained_over in prints.values():
        kept, remedy = "as it is", "leave --base-dtype out"
        wrong = bool(args.base_dtype)
    else:
        return f"{args.adapter} was trained over another base than {args.base}: give that as --base"
    return f"{args.adapter} was trained over this base {kept}: {remedy}" if wrong else ""
