"""Generation: greedy or sampled, with or without a key/value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .backend import Array, Rng, asnumpy, current, generator, xp
from .backend.blocks import restoring
from .backend.flags import quietly
from .checks import describe, integer, real
from .models.cache import window
from .models.decoder import Decoder
from .models.encoder import Encoder
from .nn import Module, evaluating
from .tensor import Tensor, no_grad
from .words import our_words


@our_words
def generate(
    model: Decoder, ids: Any, n_tokens: int, *, temperature: float = 1.0, top_k: int | None = None,
    top_p: float | None = None, rng: Rng = None, cache: bool = True,
    begins: Callable[[], Any] | None = None, stop: int | None = None,
) -> np.ndarray:
    """Return ids followed by `n_tokens` generated ones        ids: (tokens,) or (batch, tokens)

    temperature  divides the logits; 0 takes the likeliest token, so top_k and top_p are refused
    top_k        sample from the k likeliest tokens only
    top_p        sample from the fewest likeliest tokens whose probabilities sum to p or more
    cache        keep keys and values instead of computing them again: faster, the same tokens
    begins       is called before each token, to show progress
    stop         an id: a row that has generated it is finished, and is filled up with it. The
                 result ends where all rows are finished, so it may have fewer tokens

    When n_positions tokens are full, the latter half of them becomes the new context. Arguments are
    checked before the model runs: TypeError for ids that are not integers, ValueError for the rest.
    Raises FloatingPointError, with the place, if logits are not finite.
    """
    if issubclass(type(model), Encoder):
        raise TypeError(
            f"generate: a {type(model).__name__} is an encoder, which continues no text: give a "
            "decoder, such as ml.GPT2"
        )
    integer("generate", "n_tokens", n_tokens)
    real("generate", "temperature", temperature, "[0, inf)")
    if top_k is not None:
        integer("generate", "top_k", top_k, 1)
    if top_p is not None:
        real("generate", "top_p", top_p, "(0, 1]")
    if not temperature and (top_k is not None or top_p is not None):
        raise ValueError(
            f"generate: top_{'p' if top_k is None else 'k'} has no effect at temperature 0, which "
            "takes the likeliest token: leave it out, or give a temperature above 0"
        )
    given, vocab_size = np.asarray(ids), model.config.vocab_size
    out = np.atleast_2d(given)
    if out.ndim != 2 or not out.size:
        raise ValueError(
            f"generate: ids must be (tokens,) or (batch, tokens), not {given.shape}, "
            "with at least one token"
        )
    if given.dtype.kind not in "iu":
        raise TypeError(
            f"generate: ids must be integers, not {describe(ids)}: "
            "model.tokenizer.encode(text) returns the ids of a text"
        )
    for i in out[(out < 0) | (out >= vocab_size)].tolist():
        raise ValueError(
            f"generate: id {i} is not in the vocabulary, 0 to {vocab_size - 1}: "
            "encode the text with the model's own tokenizer"
        )
    if stop is not None:
        integer("generate", "stop", stop, 0, vocab_size - 1)
    finished = np.zeros(len(out), bool)
    out, size = out.astype(np.int64), window(model, out.shape[1] + n_tokens - 1)
    rng, start = generator(rng), max(0, out.shape[1] - size)
    kv, seen = None, 0  # the cache, and the number of tokens in it
    with no_grad(), evaluating(model):
        for _ in range(n_tokens):
            if begins:
                begins()
            if out.shape[1] - start > size:
                start, kv, seen = out.shape[1] - max(1, size // 2), None, 0
            if cache:
                kv = kv or model.new_cache(len(out))
                logits = quietly(model, out[:, start + seen :], cache=kv)
                seen = out.shape[1] - start
            else:
                logits = quietly(model, out[:, start:])
            last = asnumpy(logits.data[:, -1]).astype(np.float64)  # (batch, vocab_size)
            if not np.isfinite(last.max(axis=1)).all():
                place = first_not_finite(model, out[:, start:]) or "the key/value cache"
                raise FloatingPointError(
                    f"generate: the logits are not finite, starting at {place}: load finite "
                    "weights, or compute in a wider dtype"
                )
            next_ids = np.array([
                stop if done else quietly(sample, row, temperature, top_k, top_p, rng)
                for row, done in zip(last, finished)
            ])
            out = np.concatenate([out, next_ids[:, None]], axis=1)
            if stop is not None and (finished := finished | (next_ids == stop)).all():
                break
    return out[0] if given.ndim == 1 else out


@our_words
def answers(
    model: Decoder, prompts: Sequence[Sequence[int]], longest: int, stop: int, batch: int = 64
) -> list[list[int]]:
    """Return the likeliest continuation of each prompt, without `stop` and what follows it.

    Prompts of one length are computed together, at most `batch` of them, without padding: so each
    answer is the one that its prompt alone would get. longest: the most tokens of an answer.
    Raises as `generate` does.
    """
    integer("answers", "batch", batch, 1)
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    result: list[list[int]] = [[] for _ in prompts]
    for length, same in sorted(by_length.items()):
        for at in (same[j : j + batch] for j in range(0, len(same), batch)):
            rows = np.array([prompts[i] for i in at]).reshape(len(at), length)
            out = generate(model, rows, longest, temperature=0, stop=stop)[:, length:]
            for i, row in zip(at, out.tolist()):
                result[i] = row[: row.index(stop)] if stop in row else row
    return result


def sample(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None,
    rng: np.random.Generator,
) -> int:
    """Draw one token id from logits (vocab_size,). top_p: Holtzman et al. 2020."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[:top_k]  # likeliest first
    p = np.exp((logits[order] - logits[order[0]]) / temperature)
    p /= p.sum()
    if top_p is not None:
        n = 1 + int(np.searchsorted(np.cumsum(p), top_p))
        order, p = order[:n], p[:n]
    drawn = np.searchsorted(np.cumsum(p), rng.random() * p.sum())
    return int(order[min(drawn, len(order) - 1)])


def first_not_finite(model: Module, *inputs: Any) -> str:
    """Name where the numbers of model(*inputs) first stop being finite; "" if all are finite.

    It is the first parameter that is not finite ("the parameter blocks.0.attn.q.W"), else the first
    module to finish with such an output ("the output of blocks.0.mlp").
    """

    def finite(array: Array) -> bool:
        return bool(current().read(xp.isfinite(array).all(), 1.0))

    def checked(path: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if isinstance(out, Tensor) and not finite(out.data):
                places.append(f"the output of {path or 'the model'}")
            return out

        return run

    places = [f"the parameter {path}" for path, p in model.named_parameters() if not finite(p.data)]
    replaced: list[tuple[dict[str, Any], Any]] = []

    def restore() -> None:
        for attributes, own in reversed(replaced):
            attributes.pop("forward", None) if own is None else attributes.update(forward=own)

    with restoring(restore):
        for path, module in list(model.named_modules()):
            replaced.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = checked(path, module.forward)
        with no_grad(), evaluating(model):
            quietly(model, *inputs)
    return places[0] if places else ""
