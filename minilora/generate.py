"""One decoder: sampling or greedy, with or without a key/value cache: the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import Array, Rng, asnumpy, current, generator, xp
from .checks import describe, real, whole
from .models.cache import window
from .models.gpt2 import GPT2
from .nn import Module, evaluating
from .tensor import Tensor, no_grad


def generate(
    model: GPT2, ids: Any, n_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, rng: Rng = None, cache: bool = True,
) -> np.ndarray:
    """ids followed by `n_tokens` that the model wrote        ids: (tokens,) or (batch, tokens)

    temperature  0 takes the likeliest token; 1 samples from the model's own distribution
    top_k        only the k likeliest tokens;   top_p: only the likeliest that hold p of the mass
    cache        keep keys and values instead of computing them again: faster, the same result

    When the window of n_positions tokens is full, it goes on with its latter half. What is asked
    for is checked before the model runs: TypeError for ids that are no integers, ValueError for all
    else. Raises FloatingPointError that says where logits stop being finite.
    """
    whole("generate", "n_tokens", n_tokens)
    real("generate", "temperature", temperature, "[0, inf)")
    if top_k is not None:
        whole("generate", "top_k", top_k, 1)
    if top_p is not None:
        real("generate", "top_p", top_p, "(0, 1]")
    given, vocabulary = np.asarray(ids), model.config.vocab_size
    out = np.atleast_2d(given)
    if out.ndim != 2 or not out.size:
        raise ValueError(
            f"generate: ids must be (tokens,) or (batch, tokens), not {given.shape}, "
            "with at least one token to start from"
        )
    if given.dtype.kind not in "iu":
        raise TypeError(
            f"generate: ids must be integers, not {describe(ids)}: "
            "model.tokenizer.encode(text) makes them of a text"
        )
    for i in out[(out < 0) | (out >= vocabulary)].tolist():
        raise ValueError(
            f"generate: id {i} is not in the vocabulary, 0 to {vocabulary - 1}: "
            "ids are those of the model's own tokenizer"
        )
    out, size = out.astype(np.int64), window(model, out.shape[1] + n_tokens - 1)
    rng, start = generator(rng), max(0, out.shape[1] - size)
    held, seen = None, 0  # the cache, and how many of these tokens it has seen
    with no_grad(), evaluating(model), np.errstate(over="ignore", invalid="ignore"):
        for _ in range(n_tokens):
            if out.shape[1] - start > size:
                start, held, seen = out.shape[1] - max(1, size // 2), None, 0
            if cache:
                held = held or model.new_cache(len(out))
                logits = model(out[:, start + seen :], cache=held)
                seen = out.shape[1] - start
            else:
                logits = model(out[:, start:])
            last = asnumpy(logits.data[:, -1]).astype(np.float64)  # (batch, vocabulary)
            if not np.isfinite(last.max(axis=1)).all():
                where = first_not_finite(model, out[:, start:]) or "what the cache holds"
                raise FloatingPointError(
                    f"generate: the logits are not finite; the first numbers that are not are in "
                    f"{where}: load weights that are finite, or compute in a wider dtype"
                )
            next_ids = [sample(row, temperature, top_k, top_p, rng) for row in last]
            out = np.concatenate([out, np.array(next_ids)[:, None]], axis=1)
    return out[0] if given.ndim == 1 else out


def sample(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None,
    rng: np.random.Generator,
) -> int:
    """One token id from logits (vocabulary,). Nucleus sampling: Holtzman et al. 2020."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k]  # likeliest first
    p = np.exp((logits[order] - logits[order[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:
        kept = 1 + int(np.searchsorted(np.cumsum(p), top_p))
        order, p = order[:kept], p[:kept]
    at = np.searchsorted(np.cumsum(p), rng.random() * p.sum())
    return int(order[min(at, len(order) - 1)])


def first_not_finite(model: Module, *inputs: Any) -> str:
    """Where the numbers of model(*inputs) stop being finite; "" where all of them are.

    "the parameter blocks.0.attn.q.W", the first that is not finite; else "the output of
    blocks.0.mlp", of the first module to finish with such an output; the model's own comes last.
    """

    def finite(array: Array) -> bool:
        return bool(current().read(xp.isfinite(array).all(), 1.0))

    def watched(path: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if isinstance(out, Tensor) and not finite(out.data):
                found.append(f"the output of {path or 'the model'}")
            return out

        return run

    found = [f"the parameter {path}" for path, p in model.named_parameters() if not finite(p.data)]
    held: list[tuple[dict[str, Any], Any]] = []
    try:
        for path, module in list(model.named_modules()):
            held.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = watched(path, module.forward)
        with no_grad(), evaluating(model), np.errstate(over="ignore", invalid="ignore"):
            model(*inputs)
    finally:
        for attributes, own in reversed(held):
            attributes.pop("forward") if own is None else attributes.update(forward=own)
    return found[0] if found else ""
