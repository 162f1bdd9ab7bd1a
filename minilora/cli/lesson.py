"""What `minilora finetune` trains on: a model with its batches, and what to say of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..training.fit import Batch, Batches, Loss


@dataclass(frozen=True)
class Lesson:
    """A task on its data.

    checks   the held-out batches       unit     of the loss, such as "nats a token"
    steps    training steps, and rate: the learning rate, where neither is given
    before   called before the training: more numbers of the result
    after    called with the result, to complete it and to say it
    worse    the losses before and after -> why the adapter is worse than the base, or ""
    about    what identifies the run beside the options
    beside   what to say beside the losses
    """

    model: Any
    batches: Batches
    checks: list[Batch]
    unit: str
    loss: Loss
    steps: int
    rate: float
    before: Callable[[], dict[str, Any]]
    after: Callable[[dict[str, Any]], None]
    worse: Callable[[float, float], str]
    about: Mapping[str, Any]
    beside: str = ""
