"""Milestones: after 05, 08 and 10 a student's functions run the engine and train its base.

    python -m minilora.exercises.milestones 05 FOLDER     with FOLDER/ex04_*.py and ex05_*.py in it

Each trains twice from one start, with the student's functions and with the engine's own, and says
how far apart the losses are. What only has numbers gets its gradient from the engine (`numbers`).
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
from ..models.gpt2 import GPT2
from ..models.pretrained import load_base
from ..tensor import Tensor, op
from ..training.fit import evaluate, train_step
from ..training.optim import Adam, Optimizer
from .book import MILESTONES
from .worker import load

STEPS, SECONDS = 30, 6.0  # of training, with both together; whichever comes first
ROUNDING = 1e-4  # of a loss: what float32 loses in sums of a thousand numbers, with room
CONFIG = lora.LoRAConfig(r=4, alpha=8, targets=("q", "k", "v", "o"))
YOURS, ENGINE = "yours", "the engine's"
Replaced = Mapping[str, Callable[..., Tensor]]
Student = Mapping[str, types.ModuleType]


@dataclass(frozen=True)
class Milestone:
    """What was measured, in lines, and the figure; None without matplotlib."""

    lines: tuple[str, ...]
    figure: Any


def milestone(after: str, sources: Mapping[str, str]) -> Milestone:
    """Train the built-in base with the functions in these sources, {"04": text, ...}.

    They are run in this process. Raises ValueError if there is no such milestone, or one of its
    exercises is not among the sources; else whatever the student's code raises.
    """
    if after not in MILESTONES:
        raise ValueError(f"there is no milestone {after}: there are {', '.join(MILESTONES)}")
    for number in MILESTONES[after]:
        if number not in sources:
            raise ValueError(f"it needs exercise {number}, too, which is not there")
    student = {number: load(sources[number], f"exercise {number}") for number in MILESTONES[after]}
    return {"05": _attention, "08": _adapter, "10": _optimizer}[after](student)


@op
def _numbers_of(engine: Any, mine: Any) -> Any:
    return mine, (lambda g: g, None)


def numbers(name: str, engine: Tensor, mine: Any) -> Tensor:
    """A Tensor with the numbers of `mine`, through which gradients go as through `engine`."""
    if np.shape(mine) != engine.shape:
        raise ValueError(f"{name} gave {np.shape(mine)}, and {engine.shape} is needed")
    return _numbers_of(engine, np.asarray(mine, engine.dtype))


def _attention(student: Student) -> Milestone:
    maps: deque[np.ndarray] = deque(maxlen=4)  # of the last blocks
    four, five = student["04"], student["05"]

    def softmax(z: Tensor, *, axis: int = -1) -> Tensor:
        mine = four.softmax(asnumpy(z.data))
        maps.append(mine)
        return numbers("softmax", ops.softmax(z, axis=axis), mine)

    def attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, **settings: Any) -> Tensor:
        mine = five.causal_attention(*(asnumpy(x.data) for x in (q, k, v)), heads)
        return numbers("causal_attention", ops.attention(q, k, v, heads=heads, **settings), mine)

    @op
    def cross_entropy(logits: Any, targets: Any) -> Any:
        z, t = asnumpy(logits).reshape(-1, logits.shape[-1]), np.ravel(targets)
        loss = np.asarray(four.cross_entropy(z, t), z.dtype)
        return loss, (lambda g: (g * four.grad_cross_entropy(z, t)).reshape(logits.shape), None)

    replaced: Replaced = {
        "softmax": softmax,
        "attention": attention,
        "cross_entropy": cross_entropy,
    }
    run = _Run(_base, replaced, lr=1e-3)
    ids = run.tokenizer.encode("And God said, Let there be light: and there was light.")
    with ops.replaced(**replaced):
        run.model(ids[None])
    labels = [run.tokenizer.decode([i]) for i in ids]
    heads = [head for block in maps for head in block[0]]
    sharpest = max(heads, key=lambda head: np.trace(head, -1))
    left, right = viz.panels(1, 2, (12.5, 5.0))
    title = "By your softmax: the head that looks most at the token before"
    viz.attention_map(sharpest, labels, ax=left, title=title)
    run.draw(right, "The base, trained with your attention and loss")
    lines = (
        "your softmax, cross_entropy and causal_attention run the built-in base, and all of its "
        "weights are trained",
        *run.lines(),
        "gradients: of the loss your grad_cross_entropy; of attention and softmax the engine's, "
        "as those exercises have none",
    )
    return _shown(lines, left)


def _adapter(student: Student) -> Milestone:
    forward, eight = student["06"].lora_forward, student["08"]
    inputs: dict[int, np.ndarray] = {}  # the last input of the layer with this W

    def lora_linear(
        x: Tensor, W: Any, b: Any, A: Any, B: Any, mask: Any = None, *, scale: float
    ) -> Tensor:
        arrays = [asnumpy(t.data) for t in (x, W, A, B)]
        inputs[id(W)] = arrays[0]
        mine = forward(*arrays, scale * len(A)) + (0 if b is None else asnumpy(b.data))
        return numbers("lora_forward", ops.lora_linear(x, W, b, A, B, mask, scale=scale), mine)

    run = _Run(_adapted, {"lora_linear": lora_linear}, lr=5e-3)
    layers = {path: m for path, m in run.model.named_modules() if isinstance(m, lora.Adapted)}
    held = data.sequential(run.held_out, 8, 64)[:2]
    with lora.disabled(run.model):
        losses = {"the base": evaluate(run.model, held)}
    with ops.replaced(lora_linear=lora_linear):
        losses["with your lora_forward"] = evaluate(run.model, held)
    errors, undoing, kept = {}, [], []
    for path, layer in layers.items():
        W, adapter = layer.base.W, cast(lora.LoRALinear, layer.adapters["default"])
        given = [asnumpy(p.data).copy() for p in (W, adapter.A, adapter.B)]
        x = inputs[id(W)].reshape(-1, given[0].shape[1])[-1]
        merged = eight.merge(*given, adapter.alpha)
        if path.endswith(".q"):
            apart = np.abs(x @ np.asarray(merged).T - forward(x, *given, adapter.alpha))
            errors[path.removesuffix(".attn.q")] = apart, rounding.layer_bound(layer, x)
        do_merge, undo = eight.unmerge_exactly(*given, adapter.alpha)
        kept.append((W, asnumpy(W.data).copy()))
        undoing.append((W, undo))
        W.data[...] = do_merge()
        if not np.allclose(asnumpy(W.data), merged, rtol=1e-6, atol=1e-7):
            raise ValueError(f"{path}: merge and unmerge_exactly's do_merge give other weights")
    with lora.disabled(run.model):
        losses["merged by yours"] = evaluate(run.model, held)
        for W, undo in undoing:
            W.data[...] = undo()
        losses["after your undo"] = evaluate(run.model, held)
    same = sum(bool((asnumpy(W.data) == old).all()) for W, old in kept)
    count = sum(error.size for error, _ in errors.values())
    above = sum(int((error > bound).sum()) for error, bound in errors.values())
    left, right = viz.panels(1, 2, (12.5, 4.2))
    run.draw(left, "An adapter, trained with your LoRA layer")
    viz.merge_error(errors, ax=right, title="Your merge: rounding, and how large it may be")
    lines = (
        f"your lora_forward runs {len(layers)} layers of the built-in base, and their A and B are "
        "trained",
        *run.lines(),
        "gradients: the engine's, as the exercise has none",
        "held-out loss: " + ", ".join(f"{name} {loss:.6f}" for name, loss in losses.items()),
        f"W0 is back bit for bit in {same} of {len(kept)} layers",
        f"outputs above the bound for rounding: {above} of {count}",
    )
    return _shown(lines, left)


def _optimizer(student: Student) -> Milestone:
    ten = student["10"]

    class Yours(Adam):
        def update(self, name: str, p: Any, g: Any, *state: Any) -> None:
            new = ten.adam_step(p, g, *state, self.t, self.lr, *self.betas, self.eps)
            for kept, made in zip((p, *state), new, strict=True):
                kept[...] = made

    run = _Run(_adapted, {}, lr=5e-3, optimizer=Yours)
    ledgers, told = {}, []
    for name, model in (("full", _base()), ("LoRA", _adapted())):
        optimizer = Adam(model.trainable_parameters())
        ledgers[name] = accounting.ledger(model, optimizer, 4, 64)
        shapes = [p.shape for p in optimizer.parameters.values()]
        measured = sum(asnumpy(array).nbytes for array in optimizer.arrays().values())
        told.append(f"{name} {int(ten.adam_bytes(shapes, 'float32')):,} and {measured:,}")
    top, bottom = viz.panels(2, 1, (8.5, 6.0))
    run.draw(top, "An adapter, trained by your Adam")
    viz.memory_bars(ledgers, ax=bottom, title="Your adam_bytes counts the moments")
    lines = (
        "your adam_step is the optimizer of the built-in base with an adapter",
        *run.lines(),
        "gradients: the engine's",
        "bytes of Adam's m and v, by your adam_bytes and by the engine: " + "; ".join(told),
    )
    return _shown(lines, top)


class _Run:
    """Training from one start with the student's functions and with the engine's."""

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
        by, self.seconds = Adam(other.trainable_parameters(), lr), [0.0, 0.0]
        for step in range(STEPS):
            began, batch = time.monotonic(), [batches[step]]
            with ops.replaced(**replaced):
                self.yours.append(float(asnumpy(train_step(self.model, batch, mine))))
            between = time.monotonic()
            self.engine.append(float(asnumpy(train_step(other, batch, by))))
            self.seconds[0] += between - began
            self.seconds[1] += time.monotonic() - between
            if step and sum(self.seconds) > SECONDS:
                break

    def lines(self) -> list[str]:
        last = len(self.yours) - 1
        told = [f"{'loss':<16}{YOURS:>12}{ENGINE:>16}{'apart':>10}"]
        after = {0: "before training", 1: "after 1 step", last: f"after {last} steps"}
        for step, name in after.items():
            a, b = self.yours[step], self.engine[step]
            told.append(f"{name:<16}{a:12.6f}{b:16.6f}{f'{abs(a - b):.0e}' if a != b else '0':>10}")
        apart = max(abs(a - b) / abs(b) for a, b in zip(self.yours[:2], self.engine))
        told.append(
            "at first that is rounding, and each step on can make it a little larger"
            if apart <= ROUNDING else
            "that is more than rounding: minilora ex check says where it comes from"
        )
        told.append(f"seconds: {YOURS} {self.seconds[0]:.1f}, {ENGINE} {self.seconds[1]:.1f}")
        return told

    def draw(self, ax: Any, title: str) -> None:
        losses = {ENGINE: self.engine, YOURS: self.yours}
        ax = viz.loss_curves(losses, ax=ax, title=title)
        if ax is not None:
            ax.get_lines()[0].set(linewidth=6, alpha=0.35)  # what lies under it is seen
            ax.legend()


def _base() -> GPT2:
    return load_base("shakespeare")


def _adapted() -> GPT2:
    model = _base()
    lora.attach(model, CONFIG, rng=0)
    return model


def _shown(lines: tuple[str, ...], ax: Any) -> Milestone:
    return Milestone(lines, ax.figure if ax is not None else None)


def _told(error: Exception, files: Mapping[str, Path]) -> str:
    """What went wrong; in the student's code: where, too."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if frame.filename.startswith("exercise ")]
    if not theirs:
        return str(error)
    number, what = theirs[-1].filename[-2:], f"{type(error).__name__}: {error}"
    if isinstance(error, NotImplementedError):
        what = f"it is not written yet: minilora ex check {number}"
    return f"{files[number].name}, line {theirs[-1].lineno}, in {theirs[-1].name}: {what}"


def main() -> None:
    """Show a milestone of a student's folder. Exits with one line where it cannot."""
    after, folder = sys.argv[1], Path(sys.argv[2])
    files = {file.name[2:4]: file for file in sorted(folder.glob("ex[0-9][0-9]_*.py"))}
    os.environ["MPLBACKEND"] = "Agg"  # no screen is needed
    try:
        shown = milestone(after, {n: file.read_text("utf-8") for n, file in files.items()})
    except Exception as error:
        sys.exit(f"milestone {after}: {_told(error, files)}")
    print(f"milestone {after}: {shown.lines[0]}", *shown.lines[1:], sep="\n  ")
    if shown.figure is not None:
        picture = folder / f"milestone_{after}.png"
        shown.figure.savefig(picture, dpi=110)
        print(f"  figure: {picture}")


if __name__ == "__main__":
    main()
