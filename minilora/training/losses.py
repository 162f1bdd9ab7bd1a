"""The loss of an encoder, for each head that it may have."""

from __future__ import annotations

from typing import Any

from .. import ops
from ..backend import asarray, asnumpy
from ..nn import Module
from ..tensor import Tensor


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
