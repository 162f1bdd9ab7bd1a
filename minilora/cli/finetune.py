"""`minilora finetune`: of a base and a text, an adapter; and is it any better than the base?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import accounting, data, lora
from ..data.corpora import Batch
from ..models.gpt2 import GPT2
from ..training.fit import evaluate, fit
from ..training.loss_scale import LossScale
from ..training.optim import AdamW, linear_schedule
from . import inputs


def finetune(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Adapt the base to a text; write the adapter."""
    run = args.out.with_suffix(".run.npz")
    inputs.replacing(args.out, "adapter", say)
    if args.base_dtype == args.dtype:
        raise ValueError(f"--base-dtype {args.dtype} is that of --dtype already: leave it out")
    model = inputs.base(args)
    batch, window = inputs.sizes(args, model)
    settings, words = inputs.settings(args, model), inputs.text(args.text)
    training, held_out = inputs.parts(args.text, words, model, window)
    batches = data.Windows(training, batch, window, args.seed)
    unseen = data.sequential(held_out, batch, window)
    say(f"{args.text}: {len(training):,} tokens to train on, {len(held_out):,} held out")
    about = {
        "text": words, "tokenizer": model.tokenizer.merges, "--batch": batch,
        "--window": window, **{f"--{name}": getattr(args, name) for name in SAME},
    }
    paths = lora.attach(model, settings, name=_name(args.out.stem), rng=args.seed,
                        base_dtype=args.base_dtype)
    numbers = accounting.count(model)
    say(f"LoRA on {len(paths)} layers: {numbers.trainable:,} of {numbers.total:,} parameters train")
    optimizer = AdamW(model.trainable_parameters(), lr=args.lr, weight_decay=0.0)
    model.train().recompute = args.recompute
    history = fit(
        model, batches, optimizer, args.steps, max_grad_norm=1.0, progress=say,
        held_out=unseen[: args.checks],
        loss_scale=LossScale() if args.dtype == "float16" else None,
        schedule=linear_schedule(args.lr, args.steps, args.steps // 20), checkpoint=run,
        resume=not args.restart, about=about,
    )
    try:
        lora.save(model, args.out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; the run is done, and in {run}: the same command writes the adapter"
        ) from None
    run.unlink()
    before, after = history.held_out[0][1], history.held_out[-1][1]
    size = args.out.stat().st_size
    say(f"held-out loss {before:.4f} -> {after:.4f} nats a token")
    say(f"{args.out}: {size:,} bytes")
    told = {}
    if worse := _worse(model, unseen, before, after):
        told = {"failed": f"{worse}: try a smaller --lr (it was {args.lr:g}) or fewer --steps; "
                          f"{args.out} is written all the same"}
    return told | {
        "before": before, "after": after, "passed": not worse,
        "trainable": numbers.trainable, "total": numbers.total, "adapter": str(args.out),
        "bytes": size,
    }


# Options that make a run what it is, beside those above. Base, version and kernels `fit` sees.
SAME = ("seed", "targets", "r", "alpha", "dropout", "lr", "checks", "dtype")


SOME = 64  # windows: enough for how far they differ


def _worse(model: GPT2, unseen: Sequence[Batch], before: float, after: float) -> str:
    """That the adapter is worse than the base, by more than windows differ anyway; or nothing."""
    if after <= before:
        return ""
    rows = [(x[i : i + 1], y[i : i + 1]) for x, y in unseen for i in range(len(x))]
    with lora.disabled(model):
        spread = float(np.std([evaluate(model, [row]) for row in rows[:SOME]]))
    if after <= before + spread:
        return ""
    return (
        f"the adapter is worse than the base by {after - before:.4f} nats a token, and the base's "
        f"own loss differs by {spread:.4f} from window to window"
    )


def _name(stem: str) -> str:
    """What the adapter is called in its file: a name without dots, and not the base's."""
    return "adapter" if stem == "base" else stem.replace(".", "_")
