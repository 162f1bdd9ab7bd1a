"""`minilora pretrain`: train the built-in base again, from random weights."""

from __future__ import annotations

import argparse
from typing import Any

from ..pretrain import STEPS, is_log, pretrain
from . import inputs
from .parser import Parser, Say


def add_to(top: Parser) -> None:
    inputs.add_run(top.command("pretrain", run), "shakespeare.npz", STEPS)


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Train the built-in base again, from random weights."""
    inputs.check_out(args.out, "model", say)
    inputs.check_run(args.out)
    log = args.out.with_suffix(".log")
    inputs.check_new(log, is_log(log), "give another --out, or move it first")
    _, history = pretrain(
        args.out, steps=args.steps, seed=args.seed, resume=not args.restart, say=say
    )
    return {"model": str(args.out), "held_out": history.held_out[-1][1]}
