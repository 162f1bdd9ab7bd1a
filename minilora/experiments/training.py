"""One run: adapt a base to a task, then score it and measure its update.

The hyperparameters that all runs share stand here. Nothing of the test set is seen before the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import accounting, methods
from ..backend import asnumpy
from ..data.tasks import TASKS, Example, Task, base_batches
from ..generate import answers
from ..models.encoder import Encoder
from ..models.pretrained import load_base, with_head
from ..nn import Module, evaluating
from ..tensor import Tensor, no_grad
from ..training.fit import evaluate, fit, lm_loss
from ..training.losses import encoder_loss
from ..training.optim import AdamW
from ..training.schedules import Schedule, linear_schedule
from .readings import read_updates
from .variations import VARIATIONS

DECAY, WARMUP, CLIP = 0.01, 0.1, 1.0  # weight decay; share of the steps; largest gradient norm
ROUND = 6  # significant digits of a stored number


@functools.lru_cache
def kept(task: Task, part: str, n: int | None = None) -> tuple[Example, ...]:
    """Return the first n examples of a part, or all. They are kept for the next run, because a
    quarter of a run's time would go into drawing them."""
    return tuple(task.examples(part, n))


@functools.lru_cache
def base_text(base: str) -> tuple[Any, ...]:
    """Return batches of held-out text of a base. They are kept, too."""
    return tuple(base_batches(base, "test"))


class Drawn:
    """batches[i] is batch i of a task's training examples: it depends on the seed and i alone."""

    def __init__(self, task: Task, examples: Sequence[Example], batch: int, seed: int) -> None:
        self.task, self.examples, self.batch, self.seed = task, examples, batch, seed

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        at = np.random.default_rng([self.seed, i]).integers(0, len(self.examples), self.batch)
        return self.task.batch([self.examples[j] for j in at])


def loss(model: Module, batch: tuple[Any, Any]) -> Tensor:
    """Return the loss of a decoder's next token, or of an encoder's classes or number."""
    return encoder_loss(model, batch) if isinstance(model, Encoder) else lm_loss(model, batch)


def prepared(task: Task, seed: int) -> Any:
    """Return the base of a task, with a new head if the task needs one."""
    base: Any = load_base(task.base)
    return with_head(base, task.labels, rng=seed) if task.labels else base


def adapt(**config: Any) -> Any:
    """Return the adapted model for a config of `started`; FloatingPointError if it diverges."""
    model, optimizer, batches, schedule = started(**config)
    if optimizer is None:
        return model
    fit(
        model, batches, optimizer, config["steps"], loss=loss, max_grad_norm=CLIP, progress=False,
        schedule=schedule,
    )
    return model.eval()


def started(
    task: str, method: str, settings: Mapping[str, Any], examples: int, steps: int, batch: int,
    variation: str, rate: float, seed: int,
) -> tuple[Any, AdamW | None, Drawn, Schedule]:
    """Return the model before the first step, its optimizer, the batches and the rates.

    There is no optimizer for the base. A head is trained in full by every method.
    """
    about, varied = TASKS[task], VARIATIONS[variation]
    model = prepared(about, seed)
    batches = Drawn(about, kept(about, "train", examples), batch, seed)
    schedule = linear_schedule(rate, steps, int(WARMUP * steps))
    if method == "base":
        return model, None, batches, schedule
    own = varied.settings({**settings})
    kind = "lora" if method == "lora+" else method
    if kind == "probe":
        model.requires_grad_(False)
    else:
        methods.apply(model, kind, rng=seed, **own)
    varied.model(model, np.random.default_rng([seed, 1]))
    if about.labels:
        model.head.requires_grad_(True)
    optimizer_of = methods.LoRAPlus if method == "lora+" else varied.optimizer
    optimizer = optimizer_of(model.trainable_parameters(), lr=rate, weight_decay=DECAY)
    return model, optimizer, batches, schedule


def train(validation: int, test: int, **config: Any) -> dict[str, Any]:
    """Return the scores, losses, counts and readings of one run, as numbers.

    validation, test: numbers of examples to score. A run that diverges has {"diverged": True}.
    """
    task = TASKS[config["task"]]
    try:
        model = adapt(**config)
        shuffled = VARIATIONS[config["variation"]].shuffled
        result = {
            "validation": score(model, task, kept(task, "validation", validation)),
            "test": score(model, task, kept(task, "test", test), shuffled),
            "loss": losses(model, task, validation),
            "trained": trained(model, config["method"]), "total": accounting.count(model).total,
            "updates": read_updates(model, load_base(task.base)),
        }
    except FloatingPointError:
        return {"diverged": True}
    if not task.labels:
        result["base_loss"] = evaluate(model, base_text(task.base))
    return rounded(result)  # type: ignore[no-any-return]


def trained(model: Any, method: str) -> int:
    """Return the number of parameters that a method trains, without the head (as in the paper)."""
    if method in ("base", "probe"):
        return 0
    named = model.trainable_parameters().items()
    return sum(p.size for name, p in named if not name.startswith("head."))


def score(
    model: Any, task: Task, examples: Sequence[Example], shuffled: bool = False
) -> dict[str, float]:
    """Return the metrics of a model on examples. shuffled: against the answers of others."""
    outputs = predict(model, task, examples)
    if shuffled:
        outputs = outputs[1:] + outputs[:1]
    return task.score(examples, outputs)


def predict(model: Any, task: Task, examples: Sequence[Example]) -> list[Any]:
    """Return the decoder's greedy answers as texts, or the encoder's classes or numbers."""
    if not task.labels:
        prompts = [task.words.encode(x.inputs) for x in examples]
        end = task.words.ids["<end>"]
        return [task.words.decode(ids) for ids in answers(model, prompts, task.longest, end)]
    outputs: list[Any] = []
    with no_grad(), evaluating(model):
        for at in range(0, len(examples), 64):
            inputs, _ = task.batch(examples[at : at + 64])
            logits = asnumpy(model(*inputs).data)
            outputs += (logits.argmax(1) if task.labels > 1 else logits[:, 0]).tolist()
    return outputs


def losses(model: Any, task: Task, validation: int) -> dict[str, float]:
    """Return the mean loss on the validation examples, and on as many to train on."""
    parts = {}
    for part in ("train", "validation"):
        parts[part] = evaluate(model, batches_of(task, part, validation), loss)
    return parts


def batches_of(task: Task, part: str, n: int) -> list[tuple[Any, Any]]:
    """Return the first n examples of a part as batches to score."""
    some = kept(task, part, n)
    return [task.batch(some[at : at + 64]) for at in range(0, len(some), 64)]


def chance(task: str, test: int) -> dict[str, float]:
    """Return the scores of an answer that is drawn from the training examples, blindly."""
    about = TASKS[task]
    rng, examples = np.random.default_rng(0), kept(about, "test", test)
    known = kept(about, "train")
    drawn = [known[i].answer for i in rng.integers(0, len(known), len(examples))]
    outputs = [x[0] if isinstance(x, tuple) else x for x in drawn]
    return rounded(about.score(examples, outputs))  # type: ignore[no-any-return]


def rounded(value: Any) -> Any:
    """Return numbers with ROUND significant digits, in whatever holds them."""
    if isinstance(value, Mapping):
        return {str(name): rounded(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(x) for x in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if not math.isfinite(value):
        raise FloatingPointError(f"a result is {value}")
    return float(f"{value:.{ROUND}g}")
