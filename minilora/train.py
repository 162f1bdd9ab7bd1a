"""One training loop, for everything that is trained here, and one evaluation."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from . import checkpoint as files
from . import ops
from .backend import asarray, asnumpy, current
from .loss_scale import LEAST, LossScale
from .nn import Module
from .optim import Optimizer, clip_grad_norm
from .surgery import evaluating, generators
from .tensor import Tensor, no_grad

Batch = tuple[Any, Any]


class Batches(Protocol):
    """Anything with batches[i] -> (inputs, targets); what has a length is gone through in turn."""

    def __getitem__(self, i: int, /) -> Batch: ...


@dataclass
class History:
    """What a run did: losses[i] and lrs[i] of step i, held_out as (steps done, loss)."""

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def lm_loss(model: Module, batch: Batch) -> Tensor:
    """Cross-entropy of the next token, in nats, a mean over the batch."""
    inputs, targets = batch
    return ops.cross_entropy(model(inputs), targets)


def evaluate(
    model: Module,
    batches: Iterable[Batch],
    loss: Callable[[Module, Batch], Tensor] = lm_loss,
) -> float:
    """The mean loss over `batches`, weighted by their numbers of targets; dropout off, no tape."""
    total, count = 0.0, 0
    with no_grad(), evaluating(model):
        for batch in batches:
            n = int(np.size(batch[1]))
            total, count = total + loss(model, batch).item() * n, count + n
    if not count:
        raise ValueError("evaluate: there are no batches")
    return total / count


def train_step(
    model: Module, batches: Sequence[Batch], optimizer: Optimizer, *,
    loss: Callable[[Module, Batch], Tensor] = lm_loss, max_grad_norm: float | None = None,
    loss_scale: LossScale | None = None,
) -> Any:  # fmt: skip
    """One update from the mean gradient over `batches`; returns the mean loss, where arrays are."""
    optimizer.zero_grad()
    total: Any = 0.0
    for batch in batches:
        value = loss(model, batch)
        if len(batches) > 1:
            value = value * (1 / len(batches))
        (loss_scale.backward if loss_scale else Tensor.backward)(value)
        total = total + value.data
    if loss_scale:
        loss_scale.unscale(optimizer)
    if max_grad_norm is not None:
        clip_grad_norm(optimizer.parameters, max_grad_norm)
    loss_scale.step(optimizer) if loss_scale else optimizer.step()
    return total


def fit(
    model: Module, batches: Batches, optimizer: Optimizer, steps: int, *,
    schedule: Callable[[int], float] | None = None, max_grad_norm: float | None = None,
    accumulation_steps: int = 1, loss: Callable[[Module, Batch], Tensor] = lm_loss,
    held_out: Sequence[Batch] = (), eval_every: int = 0,
    progress: bool | Callable[[str], None] = True, log_every: int = 0,
    checkpoint: str | os.PathLike[str] | None = None, save_every: int = 100, resume: bool = True,
    about: Mapping[str, Any] | None = None, loss_scale: LossScale | None = None,
) -> History:  # fmt: skip
    """Train for `steps` updates (see `train_step`) and return the `History`.

    schedule            step -> learning rate, set before each update (None: the optimizer's own)
    max_grad_norm       the largest global norm of the gradients (None: as they are)
    accumulation_steps  batches whose gradients are averaged into one update
    held_out            batches to evaluate every `eval_every` steps, at the start and at the end
    progress            print a line every `log_every` steps (0: ten lines in all); or a function
    checkpoint          a .npz file written every `save_every` steps. If it is there already the run
                        goes on from it (resume=False: starts anew), and ends with the bits it would
                        have had, on any number of threads (on a GPU, where a table is trained:
                        nearly)
    about               what else makes the run what it is and cannot be seen from here, such as its
                        text and seed: JSON values by name, kept in the checkpoint
    loss_scale          for a model in half precision: its gradients are computed larger, so as not
                        to vanish, and steps whose gradients overflow are left out

    Raises TypeError if batches cannot be indexed, FloatingPointError naming the step at which a
    gradient stops being finite (with a loss_scale: a loss, or gradients at every scale; then and
    on a device, when the losses are next looked at, to log or to save), ValueError if the
    checkpoint is of another run.
    """
    if not hasattr(batches, "__getitem__"):
        raise TypeError("fit: batches[i] must work, so that a run can go on: pass list(batches)")
    if steps < 0 or accumulation_steps < 1 or save_every < 1:
        raise ValueError(
            "fit: steps must not be negative, accumulation_steps and save_every at least 1"
        )
    setting = {
        "steps": steps, "accumulation_steps": accumulation_steps, "max_grad_norm": max_grad_norm,
        "about": json.loads(json.dumps(about)),
    }  # fmt: skip
    if schedule is None:
        setting["lr"] = optimizer.lr
    run = _Run(model, optimizer, setting, loss_scale)
    say = progress if callable(progress) else (print if progress else lambda line: None)
    first = 0
    if checkpoint is not None and resume and os.path.exists(checkpoint):
        first = run.load(checkpoint)
        say(f"going on from step {first} ({checkpoint})")
    history, began, tokens = run.history, time.perf_counter(), 0
    log_every = log_every or max(1, steps // 10)
    size = len(batches) if isinstance(batches, Sized) else 0

    def look(done: int) -> None:
        if len(held_out) and not (history.held_out and history.held_out[-1][0] == done):
            history.held_out.append((done, evaluate(model, held_out, loss)))

    if first == 0:
        look(0)
    for step in range(first, steps):
        if schedule is not None:
            optimizer.lr = schedule(step)
        numbers = range(step * accumulation_steps, (step + 1) * accumulation_steps)
        some = [batches[i % size if size else i] for i in numbers]
        tokens += sum(int(np.size(batch[0])) for batch in some)
        try:
            value = train_step(
                model, some, optimizer, loss=loss, max_grad_norm=max_grad_norm,
                loss_scale=loss_scale,
            )  # fmt: skip
        except FloatingPointError as error:
            raise FloatingPointError(f"fit: step {step}: {error}") from error
        run.waiting.append(value)
        history.lrs.append(optimizer.lr)
        done = step + 1
        if (eval_every and done % eval_every == 0) or done == steps:
            look(done)
        if done % log_every == 0 or done == steps:
            run.settle()
            speed = tokens / max(1e-9, time.perf_counter() - began)
            left = (time.perf_counter() - began) / (done - first) * (steps - done)
            say(_line(done, steps, history, speed, left))
        if checkpoint is not None and (done % save_every == 0 or done == steps):
            run.settle()
            run.save(checkpoint, done)
    optimizer.zero_grad()
    return history


def _line(done: int, steps: int, history: History, speed: float, left: float) -> str:
    line = f"step {done:>{len(str(steps))}}/{steps}  loss {history.losses[-1]:.4f}"
    if history.held_out and history.held_out[-1][0] == done:
        line += f"  held out {history.held_out[-1][1]:.4f}"
    line += f"  lr {history.lrs[-1]:.2e}  {speed:,.0f} tokens/s"
    return line + f"  {int(left) // 60}:{int(left) % 60:02d} left"


class _Run:
    """All that decides how a run goes on: trained parameters, optimizer, generators, history."""

    def __init__(
        self, model: Module, optimizer: Optimizer, setting: dict[str, Any],
        loss_scale: LossScale | None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.history = model, optimizer, History()
        self.setting, self.loss_scale = {**setting, "optimizer": _settings(optimizer)}, loss_scale
        self.waiting: list[Any] = []  # losses that nobody has read yet, where the arrays are
        if loss_scale:
            self.setting["loss_scale"] = loss_scale.patience

    def settle(self) -> None:
        """Bring the losses to the host; FloatingPointError where training has gone wrong."""
        losses, scale = self.history.losses, self.loss_scale
        losses += [float(asnumpy(x)) for x in self.waiting]
        self.waiting.clear()
        bad = [i for i, x in enumerate(losses) if not math.isfinite(x)]
        if bad and (scale or not current().on_host):  # else backward has looked
            raise FloatingPointError(
                f"fit: step {bad[0]}: the loss or a gradient is not finite: "
                "lower the learning rate or clip"
            )
        if scale and float(asnumpy(scale.scale)) < LEAST:
            raise FloatingPointError(
                f"fit: before step {len(losses)}: gradients are not finite however small "
                "the loss scale is: lower the learning rate or clip"
            )

    def frozen(self) -> str:
        held = [p.data for p in self.model.parameters() if not p.requires_grad]
        return files.fingerprint(asnumpy(array) for array in held)

    def save(self, path: str | os.PathLike[str], done: int) -> None:
        trained = {f"param.{n}": asnumpy(p.data) for n, p in self.optimizer.parameters.items()}
        state = {f"optim.{name}": a for name, a in self.optimizer.state_dict().items()}
        meta = {
            "kind": "run", "done": done, "setting": self.setting, "frozen": self.frozen(),
            "rng": {name: g.bit_generator.state for name, g in generators(self.model).items()},
            "losses": self.history.losses, "lrs": self.history.lrs,
            "held_out": self.history.held_out,
            "loss_scale": self.loss_scale.state_dict() if self.loss_scale else None,
        }  # fmt: skip
        files.write(path, {**trained, **state}, meta)

    def load(self, path: str | os.PathLike[str]) -> int:
        arrays, meta = files.read(path, kind="run")
        ours = {f"param.{name}": list(p.shape) for name, p in self.optimizer.parameters.items()}
        theirs = {name: list(a.shape) for name, a in arrays.items() if name.startswith("param.")}
        for what, here, there in (
            ("trained parameters", ours, theirs),
            ("settings", self.setting, meta["setting"]),
            ("frozen weights", self.frozen(), meta["frozen"]),
        ):
            if here != there:
                raise ValueError(
                    f"fit: {path} is a checkpoint of another run: its {what} differ: "
                    "use another file, or resume=False"
                )
        for name, p in self.optimizer.parameters.items():
            p.data[...] = asarray(arrays[f"param.{name}"], p.dtype)
        state = {n[6:]: array for n, array in arrays.items() if n.startswith("optim.")}
        self.optimizer.load_state_dict(state)
        if self.loss_scale:
            self.loss_scale.load_state_dict(meta["loss_scale"])
        for name, g in generators(self.model).items():
            g.bit_generator.state = meta["rng"][name]
        held_out = [(int(at), float(value)) for at, value in meta["held_out"]]
        self.history = History(meta["losses"], meta["lrs"], held_out)
        return int(meta["done"])


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    kept = ("momentum", "betas", "eps", "weight_decay")
    settings = {name: getattr(optimizer, name) for name in kept if hasattr(optimizer, name)}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    return {"kind": type(optimizer).__name__, **plain}
