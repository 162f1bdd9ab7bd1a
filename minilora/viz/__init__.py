"""Figures, the autograd graph, and a slider through steps.

A figure function draws on `ax` (None: a new figure) and returns it. Without matplotlib it prints
one line and returns None. `graph`, `stepper` and `source` work without matplotlib. `show()` shows
the open figures.
"""

from pathlib import Path

from .attention import attention_map
from .axes import alt, available, need, panels, smallest
from .copies import unbroadcast
from .figures import (
    curves,
    loss_curves,
    memory_bars,
    merge_error,
    parameter_bars,
    rank_sweep,
    rate_sweep,
    spectrum,
)
from .notebook import show, source
from .palette import COLOURS, OTHERS, colour
from .results import cross_table, forgetting, latency_bars, quality_vs_parameters
from .slider import stepper
from .steps import backward_steps
from .subspaces import subspace_similarity
from .tape import graph, watching
from .timing import bench_bars, bench_page

STYLE = Path(__file__).with_name("page.css")  # of every page that minilora writes

__all__ = [
    "COLOURS", "OTHERS", "STYLE", "alt", "attention_map", "available", "backward_steps",
    "bench_bars", "bench_page", "colour", "cross_table", "curves", "forgetting", "graph",
    "latency_bars", "loss_curves", "memory_bars", "merge_error", "need", "panels", "parameter_bars",
    "quality_vs_parameters", "rank_sweep", "rate_sweep", "show", "smallest", "source", "spectrum",
    "stepper", "subspace_similarity", "unbroadcast", "watching",
]
