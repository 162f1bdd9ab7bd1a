"""minilora's own steps for `minilora bench`, and the sizes at which all engines are compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import backend, lora, ops
from ..generate import generate
from ..models.gpt2 import GPT2, GPT2Config
from ..tensor import no_grad
from ..training import optim
from ..training.loss_scale import LossScale

Grads = dict[str, Any]
Step = Callable[[], tuple[float, Callable[[], Grads]] | None]  # loss, how to get gradients by name


class Shape(NamedTuple):
    """Sizes of a model and its batch."""

    layers: int
    d_model: int
    heads: int
    tokens: int
    batch: int
    vocabulary: int


SHAPES = {
    "classroom": Shape(4, 256, 8, 128, 8, 512),
    "long": Shape(4, 256, 8, 1024, 1, 512),
    "gpt2-small": Shape(12, 768, 12, 128, 4, 5000),
    "tiny": Shape(2, 32, 2, 16, 2, 50),
}
R, ALPHA, LR = 8, 16.0, 1e-3
PROMPT = 8  # tokens that decoding starts from


def sizes(shape: str) -> Shape:
    """The shape of that name; "classroom:32" is the classroom's with a batch of 32.

    Raises ValueError for a name that there is not, and for what is no batch.
    """
    name, colon, batch = shape.partition(":")
    if name not in SHAPES or (colon and not re.fullmatch(r"[1-9]\d{0,8}", batch)):
        raise ValueError(
            f"there is no shape {shape!r}: there are {', '.join(SHAPES)}, and with a batch "
            "of 32 it is classroom:32"
        )
    return SHAPES[name]._replace(batch=int(batch)) if batch else SHAPES[name]


def tokens(name: str, shape: str) -> int:
    """How many tokens an engine's step is about."""
    s = sizes(shape)
    return s.tokens - PROMPT if name.endswith("decode") else s.batch * s.tokens


def build(
    shape: str, base_dtype: str | None = None, dtype: str = "float32"
) -> tuple[GPT2, np.ndarray]:
    """The model with its adapters, B ≠ 0, and the batch: ids and targets, (2, batch, tokens)."""
    s = sizes(shape)
    model = GPT2(
        GPT2Config(s.vocabulary, s.tokens, s.d_model, s.layers, s.heads), rng=0, dtype=dtype
    )
    rng = np.random.default_rng(1)
    lora.attach(model, lora.LoRAConfig(R, ALPHA, ("q", "v")), rng=2, base_dtype=base_dtype)
    for name, p in model.trainable_parameters().items():
        if name.endswith(".B"):
            p.data[...] = backend.asarray(rng.standard_normal(p.shape) * 0.01, p.dtype)
    return model, rng.integers(0, s.vocabulary, (2, s.batch, s.tokens))


def ours(
    shape: str, full: bool = False, recompute: bool = False, base_dtype: str | None = None,
    dtype: str = "float32",
) -> Step:
    """minilora: LoRA, or full fine-tuning; activations kept or made again; a base, or all that is
    frozen and computed, in halves, with a loss that is scaled."""
    model, (ids, targets) = build(shape, base_dtype, dtype)
    model.recompute = recompute
    scale = LossScale(2.0**10) if dtype == "float16" else None
    if full:
        lora.detach(model)
    optimizer = optim.AdamW(model.trainable_parameters(), LR)

    def step() -> tuple[float, Callable[[], Grads]]:
        optimizer.zero_grad()
        loss = ops.cross_entropy(model(ids), targets)
        if scale:
            scale.backward(loss)
            scale.unscale(optimizer)
        else:
            loss.backward()
        grads = {name: p.grad for name, p in optimizer.parameters.items()}
        scale.step(optimizer) if scale else optimizer.step()
        return loss.item(), lambda: {n: backend.asnumpy(g) for n, g in grads.items()}

    return step


def forward(shape: str, merge: bool) -> Step:
    """The forward pass alone: of the base, or merged."""
    model, (ids, _) = build(shape)
    (lora.merge if merge else lora.detach)(model)

    def step() -> None:
        with no_grad():
            model(ids)

    return step


def decode(shape: str) -> Step:
    """Greedy decoding with the cache: the rest of the window after the prompt."""
    model, (ids, _) = build(shape)
    lora.merge(model)

    def step() -> None:
        generate(model, ids[:1, :PROMPT], tokens("decode", shape), temperature=0)

    return step
