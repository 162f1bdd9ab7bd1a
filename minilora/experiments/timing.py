"""Measured times of several calls that take turns, and what they cost by count.

A job that measures has its times in result["times"], as name -> milliseconds. All else in its
result is counted, and is the same on every machine.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import methods
from ..accounting.step import no_collection
from ..models.gpt2 import GPT2, GPT2Config
from .experiment import Effect, effect
from .statistics import noise_floor

BLOCKS = 5
FEWEST, MOST, LASTS = 3, 50, 0.3  # turns in a block; seconds of the slowest call in a block
NOISE = (
    "The noise floor is the half-width of the 95 % interval of a difference between two means over "
    f"{BLOCKS} blocks. A block is the median of {FEWEST} to {MOST} turns. Its standard deviation "
    "is that between blocks of the same code, pooled over what is timed."
)
SHAPES = {  # tiny: the base of the decoder's tasks; wide: two blocks of GPT-2 small's width
    "tiny": {"vocab_size": 256, "n_positions": 64, "d_model": 64, "n_layers": 2, "n_heads": 4},
    "wide": {"vocab_size": 512, "n_positions": 64, "d_model": 768, "n_layers": 2, "n_heads": 12},
}
Times = dict[str, list[float]]


def in_turns(calls: Mapping[str, Callable[[], Any]], blocks: int) -> Times:
    """Return name -> the milliseconds of each block, the median of its turns.

    Processor time is measured: jobs run on one thread, and other programs do not matter much then.
    The order is A B C, C B A, A B C, ..., so that a machine that slows down is fair to all. A first
    call of each does not count.
    """
    for call in calls.values():
        call()
    slowest = max(spent(call) for call in calls.values())
    turns = max(FEWEST, min(MOST, round(LASTS / slowest)))
    each: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    with no_collection():
        for i in range(blocks * turns):
            for name in list(calls)[:: -1 if i % 2 else 1]:
                each[name].append(1000 * spent(calls[name]))
    return {name: [float(f"{statistics.median(times[i : i + turns]):.4g}")
                   for i in range(0, len(times), turns)] for name, times in each.items()}


def spent(call: Callable[[], Any]) -> float:
    """Return the seconds of processor time that a call takes; never 0."""
    fine = time.get_clock_info("process_time").resolution < 1e-5
    clock = time.process_time if fine else time.perf_counter
    began = clock()
    call()
    return max(clock() - began, 1e-9)


def blocks_for(fast: bool) -> int:
    return 2 if fast else BLOCKS


def more(times: Times, name: str, than: str) -> np.ndarray:
    """Return the share of time by which `name` takes longer than another, block by block."""
    return np.asarray(np.array(times[name]) / np.array(times[than]) - 1)


def measured(what: str, high: np.ndarray, low: np.ndarray) -> Effect:
    """Return the effect high - low over blocks."""
    groups = [x for x in (high, low) if np.ptp(x)]  # a constant is not measured
    return effect(what, high, low, noise_floor(groups, len(high)) if groups else 0.0)


def median_ms(times: Times, name: str) -> str:
    return f"{statistics.median(times[name]):.3g}"


def percent(values: np.ndarray) -> str:
    return f"{100 * float(np.median(values)):+.1f} %"


def built(shape: str, method: str, **settings: Any) -> GPT2:
    """Return a random model of a shape with a method; "base": without."""
    model = GPT2(GPT2Config(**SHAPES[shape]), rng=0)
    if method != "base":
        methods.apply(model, method, rng=0, **settings)
    return model


def ids(shape: str, batch: int, tokens: int) -> np.ndarray:
    """Return random ids (2, batch, tokens): inputs and targets."""
    return np.random.default_rng(0).integers(0, SHAPES[shape]["vocab_size"], (2, batch, tokens))
