"""The training loop and the evaluation that every model and method uses."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from .. import checks, ops
from ..backend import asnumpy
from ..backend.flags import own_flags
from ..files import atomic
from ..nn import Module, evaluating, in_mode
from ..ops.neural import IGNORED
from ..tensor import Tensor, no_grad
from ..words import our_words
from . import signals
from .loss_scale import LossScale
from .optim import Optimizer
from .run import History as History
from .run import Run, dropout_off, identity
from .schedules import Schedule, clip_grad_norm

Batch = tuple[Any, Any]
Loss = Callable[[Module, Batch], Tensor]
Weight = Callable[[Batch], float]


class Batches(Protocol):
    """Anything with batches[i] -> (inputs, targets). With a length, `fit` cycles through it."""

    def __getitem__(self, i: int, /) -> Batch: ...


def lm_loss(model: Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the next token over the batch, in nats."""
    inputs, targets = batch
    return ops.cross_entropy(model(inputs), targets)


def targets_in(batch: Batch) -> int:
    """Return the number of targets that a batch's mean loss is taken over: all that are not -100.

    Targets that are not integers, such as those of a regression, all count.
    """
    targets = batch[1].data if isinstance(batch[1], Tensor) else batch[1]
    targets = targets if hasattr(targets, "dtype") else np.asarray(targets)
    if targets.dtype.kind not in "iu":
        return int(targets.size)
    return int(np.count_nonzero(asnumpy(targets) != IGNORED))


@our_words
def evaluate(
    model: Module, batches: Iterable[Batch], loss: Loss = lm_loss, weight: Weight = targets_in
) -> float:
    """Return the mean loss over `batches`, however they are split. No dropout, no tape.

    Each batch counts as `weight(batch)`, the number that its loss is a mean over: see `train_step`.
    """
    _is_model("evaluate", model)
    total, whole, batch = 0.0, 0.0, None
    with no_grad(), evaluating(model):
        for batch in batches:
            if n := _weight("evaluate: a batch", weight, batch):
                total += n * _loss("evaluate", loss, model, batch).item()
                whole += n
    if not whole:
        raise ValueError(f"evaluate: {_nothing(batch is None)}")
    return total / whole


@own_flags
@our_words
def train_step(
    model: Module, batches: Sequence[Batch], optimizer: Optimizer, *, loss: Loss = lm_loss,
    max_grad_norm: float | None = None, loss_scale: LossScale | None = None,
    weight: Weight = targets_in,
) -> Any:
    """Update once by the gradient of the mean loss over `batches`. Return that loss, an array ().

    The mean is over all targets, so it does not matter how they are split into batches. Dropout is
    on in the step, whatever mode the model is in; its modes are the same afterwards.

    weight: batch -> the number that the loss of the batch is a mean over; 0: the batch is left out,
    and `loss` is not called. The default counts the targets, batch[1], except those that are -100.
    A loss that averages over something else, such as rows or its own mask, needs its own weight.

    Raises ValueError, before the update, if there is no target, or if no parameter of the optimizer
    gets a gradient.
    """
    _is_model("train_step", model)
    optimizer.zero_grad()
    if loss_scale:
        loss_scale.begin()
    weights = [_weight("train_step: a batch", weight, batch) for batch in batches]
    if not (whole := sum(weights)):
        raise ValueError(f"train_step: {_nothing(not weights)}")
    total: Any = 0.0
    with in_mode(model, training=True):
        for batch, n in zip(batches, weights):
            if n:
                value, share = _loss("train_step", loss, model, batch), n / whole
                part = value if n == whole else value * share
                (loss_scale.backward if loss_scale else Tensor.backward)(part)
                total = total + value.data.astype(np.promote_types(str(value.dtype), "f4")) * share
    if loss_scale:
        loss_scale.unscale(optimizer)
    elif all(p.grad is None for p in optimizer.parameters.values()):
        raise ValueError(
            "train_step: no parameter of the optimizer gets a gradient: create the optimizer after "
            "attach, from model.trainable_parameters()"
        )
    if max_grad_norm is not None:
        clip_grad_norm(optimizer.parameters, max_grad_norm)
    loss_scale.step(optimizer) if loss_scale else optimizer.step()
    return total


@our_words
def fit(
    model: Module, batches: Batches, optimizer: Optimizer, steps: int, *,
    schedule: Callable[[int], float] | None = None, max_grad_norm: float | None = None,
    accumulation_steps: int = 1, loss: Loss = lm_loss, held_out: Sequence[Batch] | None = None,
    eval_every: int = 0, progress: bool | Callable[[str], None] = True, log_every: int = 0,
    checkpoint: str | os.PathLike[str] | None = None, save_every: int | None = None,
    resume: bool = True, about: Mapping[str, Any] | None = None,
    loss_scale: LossScale | None = None, weight: Weight = targets_in,
) -> History:
    """Train for `steps` updates (see `train_step`) and return the `History`.

    Dropout is on in the steps, and off where `held_out` is evaluated. If a part of the model with
    dropout was in eval mode, progress says so. Afterwards all modes are as they were.

    schedule            step -> learning rate (None: the optimizer's lr for all steps). It is called
                        for all steps at the start. A schedule of minilora.optim must be made for
                        this number of steps
    max_grad_norm       the largest global norm of the gradients (None: no clipping)
    accumulation_steps  number of batches in an update: its gradient is that of one large batch
    held_out            batches to evaluate at the start, every `eval_every` steps and at the end
    progress            print a line every `log_every` steps (0: ten lines in all); or a function
                        that receives the line
    checkpoint          a .npz file, written every `save_every` (100) steps. If it exists, the run
                        continues from it (resume=False: starts again) and ends with the same bits
                        as without the interruption, on any number of threads (on a GPU that trains
                        a table of embeddings: nearly). SIGINT and SIGTERM finish the step and save,
                        then raise KeyboardInterrupt or SystemExit(143). A second SIGINT interrupts
                        at once
    about               further settings that identify the run, such as its text and seed: name ->
                        number, text or array. They are stored in the checkpoint
    loss_scale          for half precision: gradients are computed larger so that they do not
                        vanish, and steps whose gradients overflow are skipped
    weight              batch -> the number that its loss is a mean over: see `train_step`

    Raises TypeError or ValueError, before any work, for invalid arguments and for a checkpoint that
    is damaged, of another run (any setting that may change a bit), or not writable; nothing has
    changed then. ValueError names the step whose targets are all masked. FloatingPointError names
    the step at which a gradient, a parameter or the held-out loss is not finite (with a loss_scale:
    a loss, or gradients at every scale). Parameters, and with a loss_scale or on a device all of
    these, are checked when losses are next read: to log or to save.
    """
    counts = [("steps", steps, 1), ("accumulation_steps", accumulation_steps, 1),
              ("save_every", _with_checkpoint(checkpoint, save_every, about), 1),
              ("eval_every", eval_every, 0),
              ("log_every", log_every, 0)]
    steps, several, save_every, eval_every, log_every = (checks.integer("fit", *x) for x in counts)
    if max_grad_norm is not None:
        checks.real("fit", "max_grad_norm", max_grad_norm, "(0, inf]")
    _can_train(model, batches, optimizer)
    unseen, rates = _unseen(held_out, eval_every, weight), _rates(schedule, optimizer, steps)
    size = len(batches) if isinstance(batches, Sized) else 0
    say = progress if callable(progress) else (print if progress else lambda line: None)
    log_every = log_every or max(1, steps // 10)
    eval_steps = {0, *range(0, steps, eval_every or steps), steps} if unseen else set[int]()
    run = Run(model, optimizer, loss_scale, steps, sorted(eval_steps))
    settings, tokens = dict[str, str](), 0

    def batch(i: int) -> Batch:
        return _pair(f"fit: batches[{i}]", batches[i % size if size else i])

    if checkpoint is not None:
        atomic.check(checkpoint, ".npz")
        settings = identity(
            model, optimizer, (loss, weight), loss_scale, about or {}, rates, steps=steps,
            held_out=unseen,
            accumulation_steps=several, max_grad_norm=max_grad_norm, eval_every=eval_every,
            batches=[size, *(batch(i) for i in (0, steps * several // 2, steps * several - 1))],
        )

    def update(step: int) -> None:
        nonlocal tokens
        if schedule is not None:
            optimizer.lr = rates[step]
        some = [batch(i) for i in range(step * several, (step + 1) * several)]
        tokens += sum(map(_tokens, some))
        try:
            value = train_step(
                model, some, optimizer, loss=loss, max_grad_norm=max_grad_norm,
                loss_scale=loss_scale, weight=weight,
            )
        except (FloatingPointError, ValueError) as error:
            if type(error) is FloatingPointError:
                run.check()  # raises if the update before caused it
            elif type(error) is not ValueError:  # another class may need other arguments
                raise
            raise type(error)(f"fit: step {step}: {error}") from error
        run.waiting.append(value)
        run.history.lrs.append(optimizer.lr)

    def evaluate_at(done: int) -> None:
        if done not in eval_steps or done in [step for step, _ in run.history.held_out[-1:]]:
            return
        wanted = takewhile(lambda x: x is unseen[0] or not received, unseen)
        value = evaluate(model, wanted, loss, weight)
        if not math.isfinite(value):
            raise run.wrong(f"the held-out loss is {value}")
        if not received:
            run.history.held_out.append((done, value))

    with signals.deferred(checkpoint is not None) as received:
        first = 0
        if checkpoint is not None and resume and os.path.exists(checkpoint):
            first = run.load(checkpoint, settings)
            say(f"continuing from step {first} ({checkpoint})")
        if off := dropout_off(model):
            more = f" and {len(off) - 1} more" * (len(off) > 1)
            say(f"dropout is on in the steps, though {off[0]}{more} are in eval mode")
        began = time.perf_counter()
        for done in range(first, steps + 1):
            if done > first:
                update(done - 1)
            evaluate_at(done)
            if done > first and (done % log_every == 0 or done == steps):
                run.settle()
                spent = max(1e-9, time.perf_counter() - began)
                left = spent / (done - first) * (steps - done)
                say(_line(done, steps, run.history, tokens / spent, left))
            if checkpoint is None:
                continue
            if received or (done > first and (done % save_every == 0 or done == steps)):
                run.settle()
                run.save(checkpoint, settings)
            if received:
                raise signals.answer(
                    received,
                    f"fit: interrupted {run.when()}: {checkpoint} has the run's state, and the "
                    "same call continues it",
                    say,
                )
    optimizer.zero_grad()
    return run.history


def _line(done: int, steps: int, history: History, speed: float, left: float) -> str:
    line = f"step {done:>{len(str(steps))}}/{steps}  loss {history.losses[-1]:.4f}"
    if history.held_out and history.held_out[-1][0] == done:
        line += f"  held out {history.held_out[-1][1]:.4f}"
    line += f"  lr {history.lrs[-1]:.2e}  {speed:,.0f} tokens/s"
    return line + f"  {int(left) // 60}:{int(left) % 60:02d} left"


def _can_train(model: Any, batches: Any, optimizer: Any) -> None:
    """Raise TypeError or ValueError if these cannot be trained."""
    _is_model("fit", model)
    if isinstance(batches, str):
        raise TypeError(
            "fit: batches must give (inputs, targets), not text: encode the text, then use "
            "data.Windows(ids, batch, tokens)"
        )
    if not hasattr(batches, "__getitem__"):
        raise TypeError("fit: batches[i] must work, so that a run can resume: pass list(batches)")
    if isinstance(batches, Sized) and not len(batches):
        raise ValueError("fit: there are no batches")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"fit: the optimizer must be one of minilora.optim, such as "
            f"AdamW(model.trainable_parameters(), lr=1e-3), not {_kind(optimizer)}"
        )
    remedy = "create the optimizer after attach, from model.trainable_parameters()"
    own = set(model.parameters())
    shared = [name for name, p in optimizer.parameters.items() if p in own]
    if not shared:
        raise ValueError(f"fit: no parameter of the optimizer is in the model: {remedy}")
    if not any(p.requires_grad for p in optimizer.parameters.values()):
        raise ValueError(
            f"fit: {shared[0]} and all other parameters of the optimizer are frozen: {remedy}"
        )


def _tokens(batch: Batch) -> int:
    """Return the number of tokens in a batch; of an encoder's (ids, mask, types), count the ids."""
    inputs = batch[0]
    return int(np.size(inputs[0] if isinstance(inputs, tuple) else inputs))


def _is_model(who: str, model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{who}: the model must be a Module, such as a GPT2, not {_kind(model)}")


def _pair(who: str, batch: Any) -> Batch:
    """Return the batch if it has inputs and targets; else raise TypeError."""
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return batch  # type: ignore[return-value]
    raise TypeError(
        f"{who} must be (inputs, targets), not {_kind(batch)}: put a single batch in a list, "
        "[(inputs, targets)]"
    )


def _weight(who: str, weight: Weight, batch: Batch) -> float:
    return checks.real(who, "its weight", weight(_pair(who, batch)), "[0, inf)")


def _nothing(empty: bool) -> str:
    """Return why there is nothing to average."""
    return "there are no batches" if empty else (
        "all targets are masked (-100), so there is nothing to average: leave such batches out"
    )


def _loss(who: str, loss: Loss, model: Module, batch: Batch) -> Tensor:
    value: Any = loss(model, batch)
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: the loss must return a Tensor (no .item()), not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """Describe the type of an argument for an error."""
    if value is None or hasattr(value, "shape"):
        return "None" if value is None else f"an array of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return checks.a(type(value).__name__)


def _unseen(held_out: Any, eval_every: int, weight: Weight) -> list[Batch]:
    """Return the held-out batches that have a target, as a list of pairs; [] without them."""
    if held_out is None:
        if eval_every:
            raise ValueError(
                f"fit: eval_every is {eval_every}, but held_out is missing: give both"
            )
        return []
    if not isinstance(held_out, Sized):
        raise TypeError(f"fit: held_out must be a list of batches, not {_kind(held_out)}")
    if not len(held_out):
        raise ValueError("fit: held_out has no batches: leave it out or add one")
    batches: Iterable[Any] = held_out  # type: ignore[assignment]
    counted = [b for i, b in enumerate(batches) if _weight(f"fit: held_out[{i}]", weight, b)]
    if not counted:
        raise ValueError(f"fit: held_out: {_nothing(False)}")
    return counted


def _with_checkpoint(checkpoint: Any, save_every: int | None, about: Any) -> int:
    """Return `save_every`; ValueError for settings of a checkpoint where there is none."""
    for name, value in (("save_every", save_every), ("about", about)):
        if value is not None and checkpoint is None:
            raise ValueError(f"fit: {name} is given, but checkpoint is missing: give both")
    return 100 if save_every is None else save_every


def _rates(schedule: Any, optimizer: Optimizer, steps: int) -> list[float]:
    """Return the learning rate of every step."""
    if schedule is None:
        rates = [checks.real("fit", "the optimizer's lr", optimizer.lr, "[0, inf)")] * steps
    elif not callable(schedule):
        raise TypeError(
            f"fit: schedule must be a function, step -> learning rate, not {_kind(schedule)}: "
            "for a constant rate, set the optimizer's lr"
        )
    elif isinstance(schedule, Schedule) and schedule.steps != steps:
        raise ValueError(
            f"fit: the schedule is for {schedule.steps} steps, but the run has {steps}: give both "
            "the same number"
        )
    else:
        rates = [checks.real("fit", f"schedule({i})", schedule(i), "[0, inf)")
                 for i in range(steps)]
    if not any(rates):
        raise ValueError("fit: the learning rate is 0 in all steps: nothing would be trained")
    if idle := [i for i, rate in enumerate(rates) if not rate]:
        checks.warn(f"fit: schedule({idle[0]}) is 0: {len(idle)} of {steps} steps change nothing")
    return rates
