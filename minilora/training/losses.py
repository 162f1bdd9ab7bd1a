"""The loss of an encoder, for each head that it may have, and the share of right answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import ops
from ..backend import asarray, asnumpy
from ..data.metrics import accuracy
from ..nn import Module, evaluating
from ..tensor import Tensor, no_grad


def encoder_loss(model: Module, batch: tuple[Any, Any]) -> Tensor:
    """Return the loss of ((ids, mask, types), targets), a mean over the targets.

    Integer targets, words (batch, tokens) or classes (batch,): the cross-entropy, in nats.
    Numbers (batch,): the mean of (y - target)², y being the model's one score.
    """
    inputs, targets = batch
    scores: Tensor = model(*inputs)
    if asnumpy(targets).dtype.kind in "iu":
        return ops.cross_entropy(scores, targets)
    gap = scores.reshape(-1) - asarray(asnumpy(targets).astype(str(scores.dtype)))
    loss: Tensor = (gap * gap).mean()
    return loss


def share_right(model: Module, batches: Iterable[tuple[Any, Any]]) -> float:
    """Return the share of ((ids, mask, types), classes) whose class has the highest score."""
    right, predicted = list[int](), list[int]()
    with no_grad(), evaluating(model):
        for inputs, classes in batches:
            predicted += asnumpy(model(*inputs).data).argmax(axis=1).tolist()
            right += classes.tolist()
    return accuracy(right, predicted)
