"""`minilora finetune`: train an adapter on a text, and compare it with the base."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import accounting, data, lora
from ..data.corpora import Batch
from ..files.atomic import reason
from ..models.decoder import Decoder
from ..training.fit import evaluate, fit
from ..training.loss_scale import LossScale
from ..training.optim import AdamW
from ..training.schedules import linear_schedule
from . import inputs
from .parser import OneOf, Parser, Say, above_0, below_1, integer, some_names

DEFAULT = lora.LoRAConfig()
# The options that define a run, besides base, text and sizes: a checkpoint belongs to these values.
DEFINING = ("seed", "targets", "r", "alpha", "dropout", "lr", "checks", "dtype")
EVERY_LAYER = "q,k,v,o,up,down,tok"
WINDOWS = 64  # enough to estimate how the loss differs from window to window


def add_to(top: Parser) -> None:
    to = top.command("finetune", run)
    to.argument("text", inputs.TEXTS, needs=f"a text: {inputs.TEXTS}")
    to.instead = {
        "--text": f"the text is the first argument: {inputs.TEXTS}",
        "--adapter": "--out names the adapter's file", "--learning-rate": "give --lr",
    }
    inputs.add_run(to, "adapter.npz", 200)
    inputs.add_base(to)
    to.option("--r", read=integer(1), help="rank", default=DEFAULT.r)
    help = "scale of the update ΔW = (alpha / r) B A"
    to.option("--alpha", read=above_0, help=help, default=DEFAULT.alpha)
    help = "layers that get an adapter: names or globs, separated by commas"
    to.option("--targets", read=some_names, help=help, default=tuple(DEFAULT.targets))
    help = "dropout rate of the adapters' input"
    to.option("--dropout", read=below_1, help=help, default=DEFAULT.dropout)
    inputs.add_sizes(to)
    to.option("--lr", read=above_0, help="peak learning rate", default=1e-2)
    help = ("dtype of the frozen base and of the arithmetic; float16 is for a GPU: the loss is "
            "scaled, and other commands need --base-dtype float16 to load the adapter")
    dtypes = OneOf("float16", "float32", "float64")
    to.option("--dtype", read=dtypes, help=help, default="float32")
    to.option("--checks", read=integer(1), help="number of held-out batches to evaluate", default=8)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train an adapter on a text, and save it."""
    checkpoint = args.out.with_suffix(".run.npz")
    inputs.check_out(args.out, "adapter", say)
    inputs.check_run(args.out)
    if args.base_dtype == args.dtype:
        raise ValueError(f"--base-dtype {args.dtype} repeats --dtype: leave it out")
    model = inputs.decoder(args)
    batch, window = inputs.sizes(args, model)
    inputs.check_targets(model, args.targets)
    config = lora.LoRAConfig(args.r, args.alpha, args.targets, args.dropout)
    text = inputs.text(args.text)
    training, held_out = inputs.split(args.text, text, model, window)
    batches = data.Windows(training, batch, window, args.seed)
    checks = data.sequential(held_out, batch, window)
    chosen, vocabulary = checks[: args.checks], model.config.vocab_size
    fewer = f" (batches: {len(chosen)}, not {args.checks})" * (len(chosen) < args.checks)
    say(f"{args.text}: {len(training):,} tokens to train on, {len(held_out):,} held out{fewer}")
    about = {
        "text": text, "tokenizer": model.tokenizer.merges, "--batch": batch,
        "--window": window, **{f"--{name}": getattr(args, name) for name in DEFINING},
    }
    model.train().recompute = args.recompute
    paths = lora.attach(
        model, config, name=_adapter_name(args.out.stem), rng=args.seed, base_dtype=args.base_dtype
    )
    count = accounting.count(model)
    say(f"LoRA on {len(paths)} layers: {count.trainable:,} of {count.total:,} parameters train")
    optimizer = AdamW(model.trainable_parameters(), lr=args.lr, weight_decay=0.0)
    unigrams = data.unigram_loss(training, chosen, vocabulary)
    remedy, guess = f"train longer, with --steps {3 * args.steps}", math.log(vocabulary)
    if (start := evaluate(model, chosen)) > guess:
        if "tok" not in paths:
            remedy = f"adapt its table of tokens too, with --targets {EVERY_LAYER}"
        say(
            f"the base does not know these tokens: its held-out loss is {start:.4f}, above "
            f"{guess:.4f}, the ln {vocabulary:,} of a guess: {remedy}"
        )
    history = fit(
        model, batches, optimizer, args.steps, max_grad_norm=1.0, progress=say,
        held_out=chosen,
        loss_scale=LossScale() if args.dtype == "float16" else None,
        schedule=linear_schedule(args.lr, args.steps, args.steps // 20), checkpoint=checkpoint,
        resume=not args.restart, about=about,
    )
    before, after = history.held_out[0][1], history.held_out[-1][1]
    saved = f"the training is finished and saved in {checkpoint}: the same command writes the file"
    try:
        worse = _worse(model, checks, before, after)
        lora.save(model, args.out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {saved}") from None
    except (OSError, ValueError):
        if checkpoint.exists():
            say(saved)
        raise
    try:
        checkpoint.unlink(missing_ok=True)
    except OSError as error:  # the adapter is written
        say(f"{checkpoint} is not needed any more, but cannot be removed ({reason(error)})")
    size = args.out.stat().st_size
    say(
        f"held-out loss {before:.4f} -> {after:.4f} nats a token; to beat: {unigrams:.4f}, by the "
        "frequency of each token in the part to train on alone"
    )
    if after >= unigrams:
        say(f"the adapter has not learned more than these frequencies: {remedy}")
    say(f"{args.out}: {size:,} bytes")
    result = {
        "before": before, "after": after, "unigrams": unigrams, "passed": True,
        "trainable": count.trainable, "total": count.total, "adapter": str(args.out), "bytes": size,
    }
    if worse:
        result |= {"passed": False, "failed": (
            f"{worse}: try a smaller --lr (it was {args.lr:g}) or fewer --steps; {args.out} is "
            "written nevertheless"
        )}
    return result


def _worse(model: Decoder, checks: Sequence[Batch], before: float, after: float) -> str:
    """Say that the adapter is worse than the base, by more than the base's loss varies; or ""."""
    if after <= before:
        return ""
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in checks for i in range(len(x))]
    with lora.disabled(model):
        spread = float(np.std([evaluate(model, [row]) for row in rows[:WINDOWS]]))
    if after <= before + spread:
        return ""
    return (
        f"the adapter is worse than the base by {after - before:.4f} nats a token, and the loss "
        f"of the base varies by {spread:.4f} from window to window"
    )


def _adapter_name(stem: str) -> str:
    """Return the adapter's name in its file: printable, without dots, and not "base"."""
    name = "".join(c if c.isprintable() and c != "." else "_" for c in stem)
    return "adapter" if name == "base" else name
