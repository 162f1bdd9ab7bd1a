"""One step of training, and the evaluation: what every loop of every model and method repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import checks, ops
from ..backend import asnumpy
from ..backend.flags import own_flags
from ..nn import Module, evaluating, in_mode
from ..ops.neural import IGNORED
from ..tensor import Tensor, no_grad
from ..words import our_words
from .loss_scale import LossScale
from .optim import Optimizer
from .ranks import Group
from .schedules import clip_grad_norm
from .shards import cut, summed

Batch = tuple[Any, Any]
Loss = Callable[[Module, Batch], Tensor]
Weight = Callable[[Batch], float]


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
    return mean("evaluate", losses("evaluate", model, batches, loss, weight))


def losses(
    who: str, model: Module, batches: Iterable[Batch], loss: Loss, weight: Weight
) -> list[tuple[float, float]]:
    """Return (weight, loss) of each batch; a batch of weight 0 has loss 0."""
    is_model(who, model)
    with no_grad(), evaluating(model):
        return [(n, value_of(who, loss, model, batch).item() if n else 0.0)
                for batch in batches for n in [weight_of(f"{who}: a batch", weight, batch)]]


def mean(who: str, pairs: Sequence[tuple[float, float]]) -> float:
    """Return Σ weight · loss / Σ weight; ValueError if all weights are 0."""
    whole = sum(n for n, _ in pairs)
    if not whole:
        raise ValueError(f"{who}: {nothing(not pairs)}")
    return sum(n * value for n, value in pairs) / whole


@own_flags
@our_words
def train_step(
    model: Module, batches: Sequence[Batch], optimizer: Optimizer, *, loss: Loss = lm_loss,
    max_grad_norm: float | None = None, loss_scale: LossScale | None = None,
    weight: Weight = targets_in, group: Group | None = None,
) -> Any:
    """Update once by the gradient of the mean loss over `batches`. Return that loss, an array ().

    The mean is over all targets, so it does not matter how they are split into batches. Dropout is
    on in the step, whatever mode the model is in; its modes are the same afterwards.

    weight: batch -> the number that the loss of the batch is a mean over; 0: the batch is left out,
    and `loss` is not called. The default counts the targets, batch[1], except those that are -100.
    A loss that averages over something else, such as rows or its own mask, needs its own weight.
    group: the processes that compute the gradient together; see `fit`.

    Raises ValueError, before the update, if there is no target, or if no parameter of the optimizer
    gets a gradient.
    """
    is_model("train_step", model)
    optimizer.zero_grad()
    if loss_scale:
        loss_scale.begin()
    parts = cut(batches, group) if group else batches
    weights = [weight_of("train_step: a batch", weight, part) for part in parts]
    if not (whole := sum(weights)):
        raise ValueError(f"train_step: {nothing(not weights)}")
    total: Any = 0.0

    def backward(part: Batch, n: float) -> Any:
        """Add the part's gradients to those there are. Return its share of the loss, ()."""
        value, share = value_of("train_step", loss, model, part), n / whole
        scaled = value if n == whole else value * share
        (loss_scale.backward if loss_scale else Tensor.backward)(scaled)
        return value.data.astype(np.promote_types(str(value.dtype), "f4")) * share

    with in_mode(model, training=True):
        if group:
            total = summed(group, model, optimizer, loss_scale, [
                partial(backward, part, n) if n else None for part, n in zip(parts, weights)])
        else:
            for part, n in zip(parts, weights):
                if n:
                    total = total + backward(part, n)
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


def tokens_in(batch: Batch) -> int:
    """Return the number of tokens in a batch; of an encoder's (ids, mask, types), count the ids."""
    inputs = batch[0]
    return int(np.size(inputs[0] if isinstance(inputs, tuple) else inputs))


def is_model(who: str, model: Any) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"{who}: the model must be a Module, such as a GPT2, not {kind(model)}")


def pair(who: str, batch: Any) -> Batch:
    """Return the batch if it has inputs and targets; else raise TypeError."""
    if isinstance(batch, list | tuple) and len(batch) > 1:
        return batch  # type: ignore[return-value]
    raise TypeError(
        f"{who} must be (inputs, targets), not {kind(batch)}: put a single batch in a list, "
        "[(inputs, targets)]"
    )


def weight_of(who: str, weight: Weight, batch: Batch) -> float:
    return checks.real(who, "its weight", weight(pair(who, batch)), "[0, inf)")


def nothing(empty: bool) -> str:
    """Return why there is nothing to average."""
    return "there are no batches" if empty else (
        "all targets are masked (-100), so there is nothing to average: leave such batches out"
    )


def value_of(who: str, loss: Loss, model: Module, batch: Batch) -> Tensor:
    value: Any = loss(model, batch)
    if not isinstance(value, Tensor):
        raise TypeError(f"{who}: the loss must return a Tensor (no .item()), not {kind(value)}")
    return value


def kind(value: Any) -> str:
    """Describe the type of an argument for an error."""
    if value is None or hasattr(value, "shape"):
        return "None" if value is None else f"an array of shape {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return checks.a(type(value).__name__)


