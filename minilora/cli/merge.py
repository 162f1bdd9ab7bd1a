"""`minilora merge`: add an adapter to the base's weights, verify the result, and write it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .. import lora
from ..models.pretrained import save_model
from . import inputs
from .parser import Parser, Say, to_write


def add_to(top: Parser) -> None:
    to = top.command("merge", run)
    inputs.add_base(to)
    to.option("--adapter", read=Path, help="the .npz of an adapter")
    to.needs["adapter"] = "--adapter: the .npz that `minilora finetune` writes"
    to.option("--out", read=to_write(".npz"), help="the file to write", default="model.npz")


def run(args: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Merge an adapter into the base, and write a model without adapters."""
    inputs.check_out(args.out, "model", say)
    model = inputs.base_model(args)
    adapter = inputs.load_adapter(model, args, args.adapter, strict=True)
    shape = 2, min(64, model.config.n_positions)
    ids = np.random.default_rng(args.seed).integers(0, model.config.vocab_size, shape)
    say(f"merged against unmerged, on {shape[0]} × {shape[1]} tokens ...")
    proof = lora.verify(model, ids)
    say(str(proof))
    result = {"passed": proof.passed, "verified": proof.as_dict()}
    if not proof.passed:
        return result | {"failed": f"the merge is wrong, see above: {args.out} is not written"}
    lost = lora.merge(model)
    save_model(model, args.out, about={"merged": [*inputs.merged_adapters(args.base), adapter]})
    say(f"merged {len(lost)} layers into {args.out} ({args.out.stat().st_size:,} bytes)")
    return result | {
        "model": str(args.out), "layers": len(lost), "lost": max(lost.values()),
        "difference": proof.logits.difference, "bound": proof.logits.bound,
    }
