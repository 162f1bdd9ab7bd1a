"""minilora's own steps for `minilora bench`, and the model sizes that all engines share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import backend, lora, ops
from ..generate import generate
from ..models.gpt2 import GPT2, GPT2Config
from ..models.llama import Llama, LlamaConfig
from ..tensor import no_grad
from ..training import optim
from ..training.loss_scale import LossScale

Grads = dict[str, Any]
# A step returns its loss and a function that returns the gradients by name; or None.
Step = Callable[[], tuple[float, Callable[[], Grads]] | None]


class Shape(NamedTuple):
    """The sizes of a model and its batch."""

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
PROMPT = 8  # tokens before decoding starts


def sizes(shape: str) -> Shape:
    """Return the shape of this name; "classroom:32" is classroom with a batch of 32.

    Raises ValueError for an unknown name or an invalid batch.
    """
    name, colon, batch = shape.partition(":")
    if name not in SHAPES or (colon and not re.fullmatch(r"[1-9]\d{0,8}", batch)):
        raise ValueError(
            f"unknown shape {shape!r}: choose {', '.join(SHAPES)}; classroom:32 is classroom "
            "with a batch of 32"
        )
    return SHAPES[name]._replace(batch=int(batch)) if batch else SHAPES[name]


def tokens(name: str, shape: str) -> int:
    """Return how many tokens one step of an engine processes."""
    s = sizes(shape)
    return s.tokens - PROMPT if name.endswith("decode") else s.batch * s.tokens


def build(
    shape: str, base_dtype: str | None = None, dtype: str = "float32", llama: bool = False
) -> tuple[GPT2 | Llama, np.ndarray]:
    """Return (the model with adapters, B ≠ 0; ids and targets: (2, batch, tokens)).

    llama: a Llama, with half as many heads of k and v, and an MLP with as many numbers.
    """
    s = sizes(shape)
    each = s.vocabulary, s.tokens, s.d_model, s.layers, s.heads
    model: GPT2 | Llama = (
        Llama(LlamaConfig(*each, d_ff=s.d_model * 8 // 3, n_kv_heads=s.heads // 2), rng=0,
              dtype=dtype)
        if llama else GPT2(GPT2Config(*each), rng=0, dtype=dtype)
    )
    rng = np.random.default_rng(1)
    lora.attach(model, lora.LoRAConfig(R, ALPHA, ("q", "v")), rng=2, base_dtype=base_dtype)
    for name, p in model.trainable_parameters().items():
        if name.endswith(".B"):
            p.data[...] = backend.asarray(rng.standard_normal(p.shape) * 0.01, p.dtype)
    return model, rng.integers(0, s.vocabulary, (2, s.batch, s.tokens))


def ours(
    shape: str, full: bool = False, recompute: bool = False, base_dtype: str | None = None,
    dtype: str = "float32", llama: bool = False,
) -> Step:
    """Return a training step: LoRA, or full fine-tuning with `full`.

    recompute: recompute activations in the backward pass. base_dtype: storage of the frozen
    weights. dtype "float16": compute in half precision with a scaled loss. llama: see `build`.
    """
    model, (ids, targets) = build(shape, base_dtype, dtype, llama)
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
    """Return a forward pass of the merged model, or of the base."""
    model, (ids, _) = build(shape)
    (lora.merge if merge else lora.detach)(model)

    def step() -> None:
        with no_grad():
            model(ids)

    return step


def decode(shape: str) -> Step:
    """Return greedy decoding with a cache, from the prompt to the end of the window."""
    model, (ids, _) = build(shape)
    lora.merge(model)

    def step() -> None:
        generate(model, ids[:1, :PROMPT], tokens("decode", shape), temperature=0)

    return step
