"""Runs that are made up: a stand-in for training.train, and journals full of what it returns."""

from __future__ import annotations

import math
import zlib
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from minilora.data.tasks import TASKS, Task
from minilora.experiments import Scale, training
from minilora.experiments.experiment import experiment
from minilora.experiments.results import Results
from minilora.experiments.running import run
from minilora.files.journal import Journal, key_of
from minilora.jobs.driver import Job

FULL = Scale()
PEAK = 1e-2  # the best rate of all
calls: list[dict[str, Any]] = []


def train(**config: Any) -> dict[str, Any]:
    """Return scores that depend on the configuration alone: more for a rate near PEAK and a larger
    rank, less for the base and under a mistake. Rates above 0.05 diverge."""
    calls.append(config)
    if config["rate"] > 0.05:
        return {"diverged": True}
    rng = np.random.default_rng(zlib.crc32(key_of(config).encode()))
    good = config["method"] not in ("base", "probe") and not config["variation"]
    r = config["settings"].get("r", 1)
    far = abs(math.log10(config["rate"] / PEAK)) if config["rate"] else 0
    score = 40 + good * (20 + math.log2(r) - 5 * far) + rng.normal() / 10
    part = dict.fromkeys(TASKS[config["task"]].metrics, score)
    result = {
        "validation": part, "test": {name: x + rng.normal() / 10 for name, x in part.items()},
        "loss": {"train": 1.0, "validation": 2.0 - score / 100}, "trained": 512 * r,
        "total": 110_336, "updates": {}, "base_loss": 2.0,
    }
    made: dict[str, Any] = training.rounded(result)
    return made


def chance(task: str, test: int) -> dict[str, float]:
    return dict.fromkeys(TASKS[task].metrics, 1.0)


@contextmanager
def faked():
    """In this block, runs are made up; the list of their configurations is yielded."""
    calls.clear()
    with (
        patch.object(training, "train", train), patch.object(training, "chance", chance),
        patch.object(Task, "ready", lambda task: None),
    ):
        yield calls


def journal_of(*names: str, scale: Scale = FULL) -> Journal:
    """Return a journal with all made-up runs of these experiments."""
    journal = Journal(None)
    with faked():
        run([experiment(name) for name in names], journal, scale)
    return journal


def results_of(*names: str, scale: Scale = FULL) -> Results:
    return Results(journal_of(*names, scale=scale), scale)


def one(rate: float = 1e-2, **more: Any) -> Job:
    """Return a job whose made-up result is there at once."""
    config = {"task": "mini-e2e", "method": "lora", "settings": {"r": 4}, "rate": rate, "seed": 0,
              "variation": ""}
    return Job("train", config | more, f"rate {rate:g}")
