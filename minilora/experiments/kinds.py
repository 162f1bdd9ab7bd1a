"""The kinds of jobs that experiments have, and the functions that do them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

KINDS = {  # the kind of a job -> the module and function that does it
    "train": "training:train",
    "chance": "training:chance",
    "subspace": "paper.subspace:subspace",
    "own": "paper.amplification:own",
    "latency": "paper.latency:latency",
    "throughput": "paper.throughput:throughput",
    "switch": "paper.switch:switch",
    "intruders": "beyond.intruders:matched",
    "scaling": "scaling:compare",
    "numbers": "numbers:numbers",
    "method": "method:measure",
    "real": "real.films:train",
    "real probe": "real.films:probe",
    "real speed": "real.films:speed",
}


def function_of(kind: str) -> Callable[..., Any]:
    """Return the function that does jobs of a kind."""
    module, name = KINDS[kind].split(":")
    function: Callable[..., Any] = getattr(
        importlib.import_module(f".{module}", __package__), name
    )
    return function


def work(kind: str, config: Mapping[str, Any]) -> Any:
    """Return the result of a job."""
    return function_of(kind)(**config)
