"""The training loop that every model and method uses."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import takewhile
from typing import Any, Protocol

import numpy as np

from .. import checks
from ..adapters.registry import base_of
from ..files import atomic
from ..nn import Module
from ..words import our_words
from . import shards, signals
from .loss_scale import LossScale
from .optim import Optimizer
from .ranks import Group, check_equal, in_order, share_frozen
from .run import History as History
from .run import Run, dropout_off, identity
from .schedules import Schedule
from .steps import Batch as Batch
from .steps import Loss as Loss
from .steps import Weight, is_model, kind, losses, mean, nothing, pair, tokens_in, weight_of
from .steps import evaluate as evaluate
from .steps import lm_loss as lm_loss
from .steps import targets_in as targets_in
from .steps import train_step as train_step


class Batches(Protocol):
    """Anything with batches[i] -> (inputs, targets). With a length, `fit` cycles through it."""

    def __getitem__(self, i: int, /) -> Batch: ...


@our_words
def fit(
    model: Module, batches: Batches, optimizer: Optimizer, steps: int, *,
    schedule: Callable[[int], float] | None = None, max_grad_norm: float | None = None,
    accumulation_steps: int = 1, loss: Loss = lm_loss, held_out: Sequence[Batch] | None = None,
    eval_every: int = 0, progress: bool | Callable[[str], None] = True, log_every: int = 0,
    checkpoint: str | os.PathLike[str] | None = None, save_every: int | None = None,
    resume: bool = True, about: Mapping[str, Any] | None = None,
    loss_scale: LossScale | None = None, weight: Weight = targets_in, group: Group | None = None,
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
    group               `MPI()`: the processes that mpiexec started train together; all call `fit`
                        alike. A batch is cut into shards by its rows, and the ranks compute them.
                        Rank 0 alone calls `progress` and writes; the frozen weights are in memory
                        once a node, read-only. The run has the same bits on any number of ranks of
                        one kind of processor, and continues on any (see `MPI` for reduce="fast").
                        `Alone()`: the same bits in this process. None: batches are not cut

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
    if group is not None and not isinstance(group, Group):
        raise TypeError(f"fit: group must be MPI() or Alone(), not {kind(group)}")
    unseen, rates = _unseen(held_out, eval_every, weight), _rates(schedule, optimizer, steps)
    size = len(batches) if isinstance(batches, Sized) else 0
    say = progress if callable(progress) else (print if progress else _silent)
    log_every = log_every or max(1, steps // 10)
    eval_steps = {0, *range(0, steps, eval_every or steps), steps} if unseen else set[int]()
    run = Run(model, optimizer, loss_scale, steps, sorted(eval_steps))
    settings, tokens = dict[str, str](), 0
    rank = group.rank if group else 0
    say = say if rank == 0 else _silent
    own = unseen[rank :: group.size] if group else unseen  # each rank evaluates its own

    def batch(i: int) -> Batch:
        return pair(f"fit: batches[{i}]", batches[i % size if size else i])

    if checkpoint is not None and rank == 0:
        atomic.check(checkpoint, ".npz")
    if checkpoint is not None or group:
        settings = identity(
            model, optimizer, (loss, weight), loss_scale, about or {}, rates, steps=steps,
            held_out=unseen,
            accumulation_steps=several, max_grad_norm=max_grad_norm, eval_every=eval_every,
            batches=[size, *(batch(i) for i in (0, steps * several // 2, steps * several - 1))],
            **shards.settings(group, [batch(i) for i in range(several)]) if group else {},
        )

    def update(step: int) -> None:
        nonlocal tokens
        if schedule is not None:
            optimizer.lr = rates[step]
        some = [batch(i) for i in range(step * several, (step + 1) * several)]
        tokens += sum(map(tokens_in, some))
        try:
            value = train_step(
                model, some, optimizer, loss=loss, max_grad_norm=max_grad_norm,
                loss_scale=loss_scale, weight=weight, group=group,
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
        wanted = takewhile(lambda x: x is own[0] or not received, own)
        pairs = losses("evaluate", model, wanted, loss, weight)
        value = mean("evaluate", in_order(group, pairs, len(unseen)) if group else pairs)
        if not math.isfinite(value):
            raise run.wrong(f"the held-out loss is {value}")
        if not stopped():
            run.history.held_out.append((done, value))

    def stopped() -> bool:
        """Return whether a signal came; to any of the ranks."""
        if group and checkpoint is not None and not stop:
            numbers = group.gather(np.array([max(received, default=0)]))
            stop.extend(numbers[numbers > 0].tolist())
        return bool(stop)

    with signals.deferred(checkpoint is not None) as received:
        stop = [] if group else received
        first = 0
        if checkpoint is not None and resume and os.path.exists(checkpoint):
            first = run.load(checkpoint, settings)
            say(f"continuing from step {first} ({checkpoint})")
        if group:
            check_equal(group, run.codes(settings, first))
            share_frozen(group, [p for _, p in base_of(model).values() if not p.requires_grad])
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
            if stopped() or (done > first and (done % save_every == 0 or done == steps)):
                run.settle()
                if rank == 0:
                    run.save(checkpoint, settings)
            if stop:
                if group:
                    group.gather(np.zeros(1))  # all wait until the file is there
                    received.clear()
                raise signals.answer(
                    stop,
                    f"fit: interrupted {run.when()}: {checkpoint} has the run's state, and the "
                    "same call continues it",
                    say,
                )
    optimizer.zero_grad()
    return run.history


def _silent(line: str) -> None:
    """What the ranks above 0 say."""


def _line(done: int, steps: int, history: History, speed: float, left: float) -> str:
    line = f"step {done:>{len(str(steps))}}/{steps}  loss {history.losses[-1]:.4f}"
    if history.held_out and history.held_out[-1][0] == done:
        line += f"  held out {history.held_out[-1][1]:.4f}"
    line += f"  lr {history.lrs[-1]:.2e}  {speed:,.0f} tokens/s"
    return line + f"  {int(left) // 60}:{int(left) % 60:02d} left"


def _can_train(model: Any, batches: Any, optimizer: Any) -> None:
    """Raise TypeError or ValueError if these cannot be trained."""
    is_model("fit", model)
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
            f"AdamW(model.trainable_parameters(), lr=1e-3), not {kind(optimizer)}"
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


def _unseen(held_out: Any, eval_every: int, weight: Weight) -> list[Batch]:
    """Return the held-out batches that have a target, as a list of pairs; [] without them."""
    if held_out is None:
        if eval_every:
            raise ValueError(
                f"fit: eval_every is {eval_every}, but held_out is missing: give both"
            )
        return []
    if not isinstance(held_out, Sized):
        raise TypeError(f"fit: held_out must be a list of batches, not {kind(held_out)}")
    if not len(held_out):
        raise ValueError("fit: held_out has no batches: leave it out or add one")
    batches: Iterable[Any] = held_out  # type: ignore[assignment]
    counted = [b for i, b in enumerate(batches) if weight_of(f"fit: held_out[{i}]", weight, b)]
    if not counted:
        raise ValueError(f"fit: held_out: {nothing(False)}")
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
            f"fit: schedule must be a function, step -> learning rate, not {kind(schedule)}: "
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
