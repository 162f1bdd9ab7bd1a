"""Every picture: figures, the autograd graph, a slider through steps. Matplotlib is optional.

A figure function draws on `ax` (None: a new figure) and returns it; without matplotlib it prints
one line and returns None. `graph`, `stepper` and `source` need nothing. `show()` ends a cell.
"""

from .attention import attention_map
from .axes import alt, available, need, panels
from .copies import unbroadcast
from .figures import (
    curves,
    loss_curves,
    memory_bars,
    merge_error,
    parameter_bars,
    rank_sweep,
    spectrum,
)
from .notebook import show, source
from .palette import COLOURS, OTHERS, colour
from .slider import stepper
from .steps import backward_steps
from .tape import graph, watching
from .timing import bench_bars, bench_page

__all__ = [
    "COLOURS", "OTHERS", "alt", "attention_map", "available", "backward_steps", "bench_bars",
    "bench_page", "colour", "curves", "graph", "loss_curves", "memory_bars", "merge_error", "need",
    "panels", "parameter_bars", "rank_sweep", "show", "source", "spectrum", "stepper",
    "unbroadcast", "watching",
]
