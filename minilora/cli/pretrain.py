"""`minilora pretrain`: train a built-in base again, from random weights."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..files import atomic
from ..models.pretrained import BASES
from . import inputs
from .parser import OneOf, Parser, Say


def add_to(top: Parser) -> None:
    to = top.command("pretrain", run)
    help = f"the base: {', '.join(BASES)} (shakespeare)"
    to.argument("name", help, read=OneOf(*BASES))
    inputs.add_run(to, None, None)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train a built-in base again, from random weights."""
    from ..pretrain import is_log, pretrain  # it loads all tasks

    name = args.name or "shakespeare"
    args.out = args.out or Path(f"{name}.npz")
    atomic.check(args.out, ".npz")
    inputs.check_out(args.out, "model", say)
    inputs.check_run(args.out)
    log = args.out.with_suffix(".log")
    inputs.check_new(log, is_log(log), "give another --out, or move it first")
    _, history = pretrain(
        args.out, name=name, steps=args.steps, seed=args.seed, resume=not args.restart, say=say
    )
    return {"model": str(args.out), "held_out": history.held_out[-1][1]}
