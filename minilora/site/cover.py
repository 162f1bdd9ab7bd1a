"""The figures of the cover: an update by full fine-tuning, and how much of it rank r keeps.

All weight matrices of the base's blocks, and nothing else, are trained on another text. ΔW is the
change of one of them. BA is the best matrix of rank r for ΔW (its r largest singular values), and
the loss is that of the base with each ΔW replaced by its BA.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import backend, data
from ..models.pretrained import load_base
from ..training.fit import evaluate, fit
from ..training.optim import AdamW
from ..training.schedules import linear_schedule
from ..viz.palette import ABOVE, BELOW, ZERO
from . import cache

RANKS = range(1, 17)
MATRIX = "blocks.0.attn.v.W"  # the one in the pictures
DRAWN = 40  # rows and columns of it in the pictures
LEVELS = 32  # shades from zero to the strongest colour

Matrix = npt.NDArray[np.float64]


def cover(say: Callable[[str], None]) -> dict[str, Any]:
    """Return numbers and pictures (PNGs in base64), computed or from the cache."""
    name = f"cover-{cache.key('')}.json"
    text = cache.get(name)
    if text is None:
        say("the cover: training an update")
        text = json.dumps(_compute())
        cache.put(name, text)
    result: dict[str, Any] = json.loads(text)
    return result


def _compute() -> dict[str, Any]:
    fast = os.environ.get("MINILORA_FAST") == "1"
    steps, batch, tokens = (4, 2, 32) if fast else (60, 8, 64)
    model = load_base("shakespeare")
    training, rest = (model.tokenizer.encode(part) for part in data.split(data.load_text("kjv")))
    held_out = data.sequential(rest, 8, 2 * tokens)[: 1 if fast else 3]
    model.requires_grad_(False)
    trained = {n: p for n, p in model.named_parameters() if ".attn." in n or ".mlp." in n}
    trained = {n: p for n, p in trained.items() if n.endswith(".W")}
    start = {n: p.data.copy() for n, p in trained.items()}
    before = evaluate(model, held_out)
    for p in trained.values():
        p.requires_grad = True
    optimizer = AdamW(model.trainable_parameters(), lr=1e-3, weight_decay=0.0)
    schedule = linear_schedule(1e-3, steps, warmup=steps // 10)
    fit(model, data.Windows(training, batch, tokens, seed=0), optimizer, steps, schedule=schedule,
        max_grad_norm=1.0, progress=False)
    after = evaluate(model, held_out)
    deltas = {n: _host(p.data - start[n]) for n, p in trained.items()}
    factors: dict[str, Any] = {
        n: np.linalg.svd(delta, full_matrices=False) for n, delta in deltas.items()
    }

    losses, best = [], {}
    for r in RANKS:
        for n, p in trained.items():
            u, sizes, v = factors[n]
            BA = (u[:, :r] * sizes[:r]) @ v[:r]
            p.data[...] = start[n] + backend.asarray(BA, p.data.dtype)
            if n == MATRIX:
                best[r] = BA
        losses.append(evaluate(model, held_out))
    W0, delta = _host(start[MATRIX]), deltas[MATRIX]
    errors = [float(np.linalg.norm(delta - BA) / np.linalg.norm(delta)) for BA in best.values()]
    strong, weak = (float(np.quantile(abs(m), 0.99)) for m in (W0, delta))
    u, _, v = factors[MATRIX]  # sorting by the first direction shows the structure of the update
    rows, columns = np.argsort(u[:, 0]), np.argsort(v[0])
    order = np.ix_(*(at[:: len(at) // DRAWN][:DRAWN] for at in (rows, columns)))
    pictures = {
        "W0": _png([W0[order]], strong),
        "BA": _png([BA[order] for BA in best.values()], weak),
        "sum": _png([(W0 + BA)[order] for BA in best.values()], strong),
        "left": _png([(delta - BA)[order] for BA in best.values()], weak),
    }
    return {
        "shape": W0.shape, "left": errors, "losses": losses, "before": before, "after": after,
        "matrix": MATRIX, "stronger": strong / weak, "steps": steps, "drawn": DRAWN,
        "pictures": {name: base64.b64encode(png).decode() for name, png in pictures.items()},
    }


def _host(array: Any) -> Matrix:
    return np.asarray(backend.asnumpy(array), np.float64)


def _png(matrices: list[Matrix], strongest: float) -> bytes:
    """Return a PNG of the matrices one below the other: negative blue, positive brown."""
    from PIL import Image  # comes with matplotlib

    shades = np.concatenate(matrices) / strongest
    levels = np.clip(np.rint(shades * LEVELS), -LEVELS, LEVELS).astype(np.int64) + LEVELS
    ends = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (BELOW, ZERO, ABOVE)]
    palette = [
        ends[1] + (ends[0 if n < 0 else 2] - ends[1]) * abs(n) / LEVELS
        for n in range(-LEVELS, LEVELS + 1)
    ]
    picture, file = Image.fromarray(levels.astype(np.uint8)), io.BytesIO()
    picture.putpalette(np.rint(palette).astype(np.uint8).tobytes())
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
