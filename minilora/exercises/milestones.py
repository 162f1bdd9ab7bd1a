"""Milestones: after exercises 05, 08 and 10, the student's functions train the built-in base.

    python -m minilora.exercises.milestones 05 FOLDER     FOLDER contains ex04_*.py and ex05_*.py

Each trains twice from the same start, with the student's functions and with the engine's, and
reports the gap between the losses. A student's function that has no gradient rule gets the engine's
gradient (`with_values`).
"""

from __future__ import annotations

import os
import sys
import time
import traceback
import types
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import accounting, data, lora, ops, rounding, viz
from ..backend import asnumpy
from ..files import atomic
from ..models.gpt2 import GPT2
from ..models.pretrained import load_base
from ..tensor import Tensor, op
from ..training.fit import evaluate, train_step
from ..training.optim import Adam, Optimizer
from .book import MILESTONES
from .submissions import source
from .worker import load

STEPS, SECONDS = 30, 6.0  # both trainings together stop at whichever comes first
ROUNDING = 1e-4  # relative, of a loss: above the float32 rounding of sums of a thousand numbers
CONFIG = lora.LoRAConfig(r=4, alpha=8, targets=("q", "k", "v", "o"))
YOURS, ENGINE = "yours", "the engine's"
Replaced = Mapping[str, Callable[..., Tensor]]
Student = Mapping[str, types.ModuleType]


@dataclass(frozen=True)
class Milestone:
    """The measurements as lines, and a figure; None without matplotlib."""

    lines: tuple[str, ...]
    figure: Any


def milestone(after: str, sources: Mapping[str, str]) -> Milestone:
    """Train the built-in base with the functions in these sources, {"04": text, ...}.

    The sources run in this process. Raises ValueError for an unknown milestone or a missing source,
    and any exception of the student's code.
    """
    if after not in MILESTONES:
        raise ValueError(f"unknown milestone {after}: choose one of {', '.join(MILESTONES)}")
    for number in MILESTONES[after]:
        if number not in sources:
            raise ValueError(f"the file of exercise {number} is missing: write it too")
    student = {number: load(sources[number], f"exercise {number}") for number in MILESTONES[after]}
    return {"05": _attention, "08": _adapter, "10": _optimizer}[after](student)


@op
def _second(engine: Any, mine: Any) -> Any:
    return mine, (lambda g: g, None)


def with_values(name: str, engine: Tensor, mine: Any) -> Tensor:
    """Return a Tensor with the values of `mine` and the gradient of `engine`."""
    if np.shape(mine) != engine.shape:
        raise ValueError(f"{name} returned shape {np.shape(mine)}, not {engine.shape}")
    return _second(engine, np.asarray(mine, engine.dtype))


def _attention(student: Student) -> Milestone:
    maps: deque[np.ndarray] = deque(maxlen=4)  # of the last blocks
    four, five = student["04"], student["05"]

    def softmax(z: Tensor, *, axis: int = -1) -> Tensor:
        mine = four.softmax(asnumpy(z.data))
        maps.append(mine)
        return with_values("softmax", ops.softmax(z, axis=axis), mine)

    def attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, **settings: Any) -> Tensor:
        mine = five.causal_attention(*(asnumpy(x.data) for x in (q, k, v)), heads)
        engine = ops.attention(q, k, v, heads=heads, **settings)
        return with_values("causal_attention", engine, mine)

    @op
    def cross_entropy(logits: Any, targets: Any) -> Any:
        z, t = asnumpy(logits).reshape(-1, logits.shape[-1]), np.ravel(targets)
        loss = np.asarray(four.cross_entropy(z, t), z.dtype)
        return loss, (lambda g: (g * four.grad_cross_entropy(z, t)).reshape(logits.shape), None)

    replaced: Replaced = {"softmax": softmax, "attention": attention,
                          "cross_entropy": cross_entropy}
    run = _Comparison(_base, replaced, lr=1e-3)
    ids = run.tokenizer.encode("And God said, Let there be light: and there was light.")
    with ops.replaced(**replaced):
        run.model(ids[None])
    labels = [run.tokenizer.decode([i]) for i in ids]
    heads = [head for block in maps for head in block[0]]
    sharpest = max(heads, key=lambda head: np.trace(head, -1))
    left, right = viz.panels(1, 2, (12.5, 5.0))
    title = "From your softmax: the head that attends most to the previous token"
    viz.attention_map(sharpest, labels, ax=left, title=title)
    run.draw(right, "The base, trained with your attention and loss")
    lines = (
        "your softmax, cross_entropy and causal_attention run in the built-in base; all of its "
        "weights are trained",
        *run.lines(),
        "gradients: your grad_cross_entropy for the loss, the engine's for attention and softmax",
    )
    return _result(lines, left)


def _adapter(student: Student) -> Milestone:
    forward, eight = student["06"].lora_forward, student["08"]
    inputs: dict[int, np.ndarray] = {}  # the last input of the layer with this W

    def lora_linear(
        x: Tensor, W: Any, b: Any, A: Any, B: Any, mask: Any = None, *, scale: float
    ) -> Tensor:
        arrays = [asnumpy(t.data) for t in (x, W, A, B)]
        inputs[id(W)] = arrays[0]
        mine = forward(*arrays, scale * len(A)) + (0 if b is None else asnumpy(b.data))
        return with_values("lora_forward", ops.lora_linear(x, W, b, A, B, mask, scale=scale), mine)

    run = _Comparison(_adapted, {"lora_linear": lora_linear}, lr=5e-3)
    layers = {path: m for path, m in run.model.named_modules() if isinstance(m, lora.Adapted)}
    batches = data.sequential(run.held_out, 8, 64)[:2]
    with lora.disabled(run.model):
        losses = {"the base": evaluate(run.model, batches)}
    with ops.replaced(lora_linear=lora_linear):
        losses["with your lora_forward"] = evaluate(run.model, batches)
    errors, undos, originals = {}, [], []
    for path, layer in layers.items():
        W, adapter = layer.base.W, cast(lora.LoRALinear, layer.adapters["default"])
        given = [asnumpy(p.data).copy() for p in (W, adapter.A, adapter.B)]
        x = inputs[id(W)].reshape(-1, given[0].shape[1])[-1]
        merged = eight.merge(*given, adapter.alpha)
        if path.endswith(".q"):
            apart = np.abs(x @ np.asarray(merged).T - forward(x, *given, adapter.alpha))
            errors[path.removesuffix(".attn.q")] = apart, rounding.layer_bound(layer, x)
        do_merge, undo = eight.unmerge_exactly(*given, adapter.alpha)
        originals.append((W, asnumpy(W.data).copy()))
        undos.append((W, undo))
        W.data[...] = do_merge()
        if not np.allclose(asnumpy(W.data), merged, rtol=1e-6, atol=1e-7):
            raise ValueError(f"{path}: merge and unmerge_exactly's do_merge give different weights")
    with lora.disabled(run.model):
        losses["after your do_merge"] = evaluate(run.model, batches)
        for W, undo in undos:
            W.data[...] = undo()
        losses["after your undo"] = evaluate(run.model, batches)
    same = sum(bool((asnumpy(W.data) == old).all()) for W, old in originals)
    count = sum(error.size for error, _ in errors.values())
    above = sum(int((error > bound).sum()) for error, bound in errors.values())
    left, right = viz.panels(1, 2, (12.5, 4.2))
    run.draw(left, "An adapter, trained with your LoRA layer")
    viz.merge_error(errors, ax=right, title="Your merge: rounding error and its bound")
    lines = (
        f"your lora_forward runs in {len(layers)} layers of the built-in base; their A and B are "
        "trained",
        *run.lines(),
        "gradients: the engine's",
        "held-out loss: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()),
        f"W0 is restored bit for bit in {same} of {len(originals)} layers",
        f"outputs above the rounding bound: {above} of {count}",
    )
    return _result(lines, left)


def _optimizer(student: Student) -> Milestone:
    ten = student["10"]

    class Yours(Adam):
        def update(self, name: str, p: Any, g: Any, *state: Any) -> None:
            new = ten.adam_step(p, g, *state, self.t, self.lr, *self.betas, self.eps)
            for array, value in zip((p, *state), new, strict=True):
                array[...] = value

    run = _Comparison(_adapted, {}, lr=5e-3, optimizer=Yours)
    ledgers, counts = {}, []
    for name, model in (("full", _base()), ("LoRA", _adapted())):
        optimizer = Adam(model.trainable_parameters())
        ledgers[name] = accounting.ledger(model, optimizer, 4, 64)
        shapes = [p.shape for p in optimizer.parameters.values()]
        measured = sum(asnumpy(array).nbytes for array in optimizer.arrays().values())
        counts.append(f"{name} {int(ten.adam_bytes(shapes, 'float32')):,} and {measured:,}")
    top, bottom = viz.panels(2, 1, (8.5, 6.0))
    run.draw(top, "An adapter, trained by your Adam")
    viz.memory_bars(ledgers, ax=bottom, title="Your adam_bytes counts the moments")
    lines = (
        "your adam_step trains an adapter of the built-in base",
        *run.lines(),
        "gradients: the engine's",
        "bytes of Adam's m and v, from your adam_bytes and in the engine: " + "; ".join(counts),
    )
    return _result(lines, top)


class _Comparison:
    """Two trainings from the same start: with the student's functions and with the engine's."""

    def __init__(
        self, start: Callable[[], GPT2], replaced: Replaced, *, lr: float,
        optimizer: type[Optimizer] = Adam,
    ) -> None:
        self.model = start()
        self.tokenizer: Any = self.model.tokenizer
        text, rest = data.split(data.load_text("kjv")[:200_000])
        self.held_out = self.tokenizer.encode(rest)
        batches = data.Windows(self.tokenizer.encode(text), 4, 64, seed=0)
        other, self.yours, self.engine = start(), list[float](), list[float]()
        mine = optimizer(self.model.trainable_parameters(), lr)
        theirs, self.seconds = Adam(other.trainable_parameters(), lr), [0.0, 0.0]
        for step in range(STEPS):
            start_time, batch = time.monotonic(), [batches[step]]
            with ops.replaced(**replaced):
                self.yours.append(float(asnumpy(train_step(self.model, batch, mine))))
            between = time.monotonic()
            self.engine.append(float(asnumpy(train_step(other, batch, theirs))))
            self.seconds[0] += between - start_time
            self.seconds[1] += time.monotonic() - between
            if step and sum(self.seconds) > SECONDS:
                break

    def lines(self) -> list[str]:
        last = len(self.yours) - 1
        lines = [f"{'loss':<16}{YOURS:>12}{ENGINE:>16}{'gap':>10}"]
        names = {0: "before training", 1: "after 1 step", last: f"after {last} steps"}
        for step, name in names.items():
            a, b = self.yours[step], self.engine[step]
            gap = f"{abs(a - b):.0e}" if a != b else "0"
            lines.append(f"{name:<16}{a:12.6f}{b:16.6f}{gap:>10}")
        first = max(abs(a - b) / abs(b) for a, b in zip(self.yours[:2], self.engine))
        lines.append(
            "the first gaps are rounding; each further step can make them a little larger"
            if first <= ROUNDING else
            "the first gaps are more than rounding: minilora ex check finds the reason"
        )
        lines.append(f"seconds: {YOURS} {self.seconds[0]:.1f}, {ENGINE} {self.seconds[1]:.1f}")
        return lines

    def draw(self, ax: Any, title: str) -> None:
        losses = {ENGINE: self.engine, YOURS: self.yours}
        ax = viz.loss_curves(losses, ax=ax, title=title)
        if ax is not None:
            ax.get_lines()[0].set(linewidth=6, alpha=0.35)  # the other line covers it
            ax.legend()


def _base() -> GPT2:
    return load_base("shakespeare")


def _adapted() -> GPT2:
    model = _base()
    lora.attach(model, CONFIG, rng=0)
    return model


def _result(lines: tuple[str, ...], ax: Any) -> Milestone:
    return Milestone(lines, ax.figure if ax is not None else None)


def _message(error: Exception, files: Mapping[str, Path]) -> str:
    """The error's message, with the place if it comes from the student's code."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename.startswith("exercise ")]
    if not theirs:
        return str(error)
    number, text = theirs[-1].filename[-2:], f"{type(error).__name__}: {error}"
    if isinstance(error, NotImplementedError):
        text = f"not written yet: minilora ex check {number}"
    return f"{files[number].name}, line {theirs[-1].lineno}, in {theirs[-1].name}: {text}"


def main() -> None:
    """Print a milestone of a student's folder, save its figure. Exit with one line on an error."""
    after, folder = sys.argv[1], Path(sys.argv[2])
    files = {file.name[2:4]: file for file in sorted(folder.glob("ex[0-9][0-9]_*.py"))}
    os.environ["MPLBACKEND"] = "Agg"  # no display needed
    picture = folder / f"milestone_{after}.png"
    try:
        atomic.check(picture, ".png")
        result = milestone(after, {n: source(file) for n, file in files.items()})
    except Exception as error:
        sys.exit(f"milestone {after}: {_message(error, files)}")
    print(f"milestone {after}: {result.lines[0]}", *result.lines[1:], sep="\n  ")
    if result.figure is not None:
        result.figure.savefig(picture, dpi=110)
        print(f"  figure: {picture}")


if __name__ == "__main__":
    main()
