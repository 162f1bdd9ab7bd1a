"""What several commands read: a base, a text, sizes, an adapter; and the options for them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from .. import data, lora
from ..adapters import files
from ..adapters.patterns import matching
from ..checks import a
from ..files import checkpoint
from ..files.text import read
from ..jobs import executors
from ..models.decoder import Decoder
from ..models.pretrained import BASES, load_base, load_model
from .parser import OneOf, Parser, Say, integer, to_write

BATCH, WINDOW = 8, 128
STORED = {"float16": "in half precision", "int8": "as int8 codes", "nf4": "as nf4 codes"}
TEXTS = f"a file, or one of {', '.join(data.TEXTS)}"


def add_base(to: Parser) -> None:
    to.instead["--model"] = "give --base"
    help = "a built-in base, a model's .npz or .gguf, or a folder as Hugging Face lays it out"
    to.option("--base", read=str, help=help, default="shakespeare")
    help = "store the frozen base in half the bytes, or its blocks as codes of 8 or 4 bits (QLoRA)"
    to.option("--base-dtype", read=OneOf(*STORED), help=help)


def add_sizes(to: Parser, batch: str = "", window: str = "") -> None:
    """The sizes of a batch; `batch` and `window` say more about their defaults."""
    to.option("--batch", read=integer(1), help=f"sequences in a batch ({BATCH}{batch})")
    most = f"{WINDOW}, or the base's maximum if that is less{window}"
    to.option("--window", read=integer(1), help=f"tokens in a sequence ({most})")
    to.flag("--recompute", help="keep fewer activations, compute them again: slower, less memory")


def add_run(to: Parser, out: str | None, steps: int | None) -> None:
    """The options of a command that trains; None: the default depends on what is trained."""
    help = "the file to write" + " (NAME.npz)" * (out is None)
    to.option("--out", read=to_write(".npz"), help=help, default=out)
    help = "number of training steps" + " (those of the built-in one)" * (steps is None)
    to.option("--steps", read=integer(1), help=help, default=steps)
    to.flag("--restart", help="start again at step 1; do not continue an interrupted run")
    to.instead |= {
        "--resume": "an interrupted run continues by itself; --restart starts anew",
        "--epochs": "give --steps",
    }


def add_executor(to: Parser, jobs: int | None = None) -> None:
    """The options of a command that runs jobs; None: as many at a time as there are cores."""
    help = "what starts the processes that do the runs; dask:ADDRESS is a cluster that is there"
    to.option("--executor", read=executor, default="processes",
              help=f"{help}: {', '.join(executors.NAMES)}")
    help = "number of processes" + " (one for each core)" * (jobs is None)
    to.option("--jobs", read=integer(1, 1024), help=help, default=jobs)


def executor(text: str) -> str:
    """The name of an executor."""
    try:
        executors.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def base_model(args: argparse.Namespace) -> Any:
    """Return the base, with its tokenizer: a built-in one, or that of a file or folder."""
    if args.base not in BASES and not Path(args.base).exists():
        raise ValueError(
            f"{args.base} is neither a file nor a built-in base: give a model's .npz, or "
            f"{', '.join(BASES)}"
        )
    theirs = of_others(args.base)
    if args.base not in BASES and not theirs:
        check_kind(args, "--base", args.base)
    load, dtype = load_base if args.base in BASES else load_model, getattr(args, "dtype", "float32")
    model: Any = load(args.base, dtype=dtype)
    if model.tokenizer is None:
        place = "put its tokenizer.json there" if Path(args.base).is_dir() else "it must be in it"
        remedy = place if theirs else "set model.tokenizer before save_model"
        raise ValueError(f"{args.base} has no tokenizer: {remedy}")
    return model


def of_others(name: str) -> bool:
    """Return whether a base is in a folder or file that other packages write."""
    return name not in BASES and (Path(name).is_dir() or name.endswith(".gguf"))


def decoder(args: argparse.Namespace) -> Any:
    """Return the base, with its tokenizer; ValueError for an encoder, which continues no text."""
    model = base_model(args)
    if not isinstance(model, Decoder):
        what = f"{args.base} is a {type(model).__name__}, an encoder"
        raise ValueError(f"{what}: give a decoder, such as shakespeare")
    return model


def text(name: str) -> str:
    """Return the built-in text of this name, or the content of the file."""
    if name in data.TEXTS:
        return data.load_text(name)
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name} is neither a file nor a built-in text: give {TEXTS}")
    return read(path)


def check_eval(name: str, same: bool) -> None:
    """Raise ValueError if what is evaluated on is what is trained on."""
    if same:
        raise ValueError(
            f"--eval {name} has what is trained on, so its loss says nothing about other data: "
            "give another file, or leave it out"
        )


def split(name: str, words: str, model: Any, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a text to train on, and the held-out ones: a window or more of each."""
    if len(words) < 2:
        raise ValueError(f"{name} is {'one character' if words else 'empty'}: give a longer text")
    return tokens(name, data.split(words), model, window)


def tokens(
    name: str, parts: tuple[str, str], model: Any, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of a text to train on, and of the held-out one: see `split`."""
    training, held_out = (model.tokenizer.encode(part) for part in parts)
    most = min(len(training), len(held_out)) - 1
    if most < window:
        raise ValueError(
            f"{name} has too few tokens: {len(training):,} to train on, {len(held_out):,} held out;"
            f" a window of {window} needs {window + 1} of each: give a longer text"
            + (f", or --window {most} or less" if most > 0 else "")
        )
    return training, held_out


def sizes(args: argparse.Namespace, model: Any, taken: int = 0) -> tuple[int, int]:
    """Return the sequences in a batch and the tokens in a sequence.

    taken: the number of positions that trained tokens take.
    """
    most = model.config.n_positions - taken
    check_window(args.window, args.base, most)
    return args.batch or BATCH, args.window or min(WINDOW, most)


def check_window(window: int | None, name: str, most: int) -> None:
    """Raise ValueError if the model cannot read so many tokens."""
    if window is not None and window > most:
        raise ValueError(f"--window {window}: {name} reads {most} tokens: give {most} or less")


def check_targets(model: Any, targets: tuple[str, ...]) -> None:
    """Raise ValueError if one of the targets matches no layer of the model."""
    matching(lora.adaptable(model), targets, "--targets: no layer")


# Nothing of the user's is overwritten. A command replaces a file without being asked only where it
# can see that minilora wrote it and nobody edits such files by hand: an .npz of the same kind, an
# unchanged site (site/folder.py), an unchanged file of ex grade. It replaces any other file only
# with --force.


def check_new(out: Path, replace: bool, remedy: str) -> None:
    """Raise ValueError, with the remedy, if there is a file that is not to be replaced."""
    if out.exists() and not replace:
        raise ValueError(f"{out} exists, and minilora did not write it so: {remedy}")


def check_run(out: Path) -> None:
    """Raise ValueError if another file stands where the run is to be kept until it is finished."""
    run = out.with_suffix(".run.npz")
    try:
        with checkpoint.opened(run, "run"):
            pass
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ValueError(
            f"{run} exists and holds no run, which is to be kept there: give another --out, or "
            "move it first"
        ) from error


def check_out(out: Path, kind: str, say: Say) -> None:
    """Announce that a file of the same kind is replaced. Raise ValueError if it is another kind."""
    if not out.exists():
        return
    try:
        with checkpoint.opened(out, kind):
            say(f"{out} exists and will be replaced")
    except ValueError as error:
        raise ValueError(
            f"--out {out} exists and holds no {kind}: give another name, or remove it first"
        ) from error


def check_kind(args: argparse.Namespace, option: str, path: str | Path) -> None:
    """Raise ValueError if the file is not what the option takes, with the option that takes it."""
    takes = {"model": "--base", **dict.fromkeys(files.KINDS, "--adapter")}
    with checkpoint.opened(path) as file:
        kind, other = file.kind, takes.get(file.kind)
    if other == option:
        return
    wanted = "model" if option == "--base" else "adapter"
    if other and hasattr(args, other[2:]):
        remedy = f"give it as {other}"
    elif other:
        remedy = f"minilora generate {other} {path} uses it"
    else:
        remedy = f"give the .npz of {a(wanted)}"
    raise ValueError(f"{path} holds {a(kind)}, not {a(wanted)}: {remedy}")


def load_adapter(
    model: Any, args: argparse.Namespace, path: Path, strict: bool, name: str | None = None,
    trainable: bool = False,
) -> str:
    """Load the adapter into the model, under this name or its own; return its fingerprint.

    trainable: to go on training it.
    A base that is not the one it was trained on is an error if `strict`, else a warning.
    """
    check_kind(args, "--adapter", path)
    with checkpoint.opened(path, *files.KINDS) as file:
        fingerprint = checkpoint.fingerprint(file.array(name) for name in sorted(file.shapes))
        if fingerprint in merged_adapters(args.base):
            problem = f"{path} is already merged into {args.base}: use the base without it"
        else:
            _, _, scales, base = files.described(file, model)
            problem = _mismatch(model, args, path, scales, base)
    if problem and strict:
        raise ValueError(problem)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "load: .*base")  # `problem` says it
        lora.load(model, path, name, trainable, args.base_dtype)
    if problem:
        warnings.warn(problem, stacklevel=2)
    return fingerprint


def merged_adapters(name: str) -> list[str]:
    """Return the fingerprints of the adapters that were merged into a base."""
    if name in BASES or of_others(name):
        return []
    with checkpoint.opened(name, "model") as file:
        merged: list[str] = file.facts(merged=list)[0] if "merged" in file.meta else []
        return merged


def _mismatch(
    model: Any, args: argparse.Namespace, path: Path, paths: Collection[str], trained_on: str
) -> str:
    """Say how the base differs from the one the adapter was trained on, and the remedy; or ""."""
    if not set(paths) <= lora.adaptable(model).keys():
        return ""  # lora.load says what does not fit
    wide = None, "float32", "float64"
    same = [dtype for dtype in (*wide, *STORED)
            if files.fingerprint(model, paths, dtype) == trained_on]
    if not same:
        return f"{path} was trained on a base other than {args.base}: give it as --base"
    if args.base_dtype in same or (args.base_dtype is None and {*wide} & {*same}):
        return ""
    how, remedy = "in full precision", "leave out --base-dtype"
    if same[0] in STORED:
        how, remedy = STORED[same[0]], f"give --base-dtype {same[0]}"
    return f"{path} was trained on this base {how}: {remedy}"
