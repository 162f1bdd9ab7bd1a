"""One colour-blind-safe palette; each colour has the same meaning everywhere.

Each has a contrast of at least 3 : 1 with the page, light and dark (there it is inverted).
"""

from __future__ import annotations

import re
from typing import Any

COLOURS = {
    "frozen": "#7890A8",  # W0, and the base model
    "A": "#C87A00",
    "B": "#009E73",
    "LoRA": "#C87A00",  # a model that trains A and B
    "merged": "#7B3FA0",  # W0 + ΔW in one array
    "full": "#111111",  # full fine-tuning
    "wrong": "#C2262E",  # a failed check; always marked by more than colour
}
OTHERS = ("#0072B2", "#C2699B", "#8C6D31", "#3A92C8")  # for other names
RIVALS = {  # what the paper compares LoRA with
    "BitFit": OTHERS[0],
    "Adapter": OTHERS[1],
    "PreEmbed": OTHERS[2],
    "PreLayer": OTHERS[3],
}
ROWS = {  # of memory: frozen and activations grey; trained, gradients and moments orange
    "frozen weights": COLOURS["frozen"],
    "trained weights": "#5E3600",
    "gradients": "#9C5A00",
    "Adam moments": "#C87A00",
    "activations": "#80868F",
}
_SAME = {"W0": "frozen", "base": "frozen", "unmerged": "LoRA", "adapted": "LoRA"}
BELOW, ZERO, ABOVE = "#1B4F8A", "#FFFFFF", "#8C4A00"  # negative blue, positive brown


def meaning(label: str) -> str:
    """Return the key of COLOURS or RIVALS that the first known word of `label` stands for; else "".
    """
    words = (_SAME.get(word, word) for word in re.findall("W0|[A-Za-z]+", label))
    return next((word for word in words if word in COLOURS or word in RIVALS), "")


def colour(label: str, i: int = 0) -> str:
    """Return the colour for the first known word of `label`, else the i-th of OTHERS."""
    return (COLOURS | RIVALS).get(meaning(label), OTHERS[i % len(OTHERS)])


def shades() -> Any:
    """Return the scale of maps, of matplotlib: white 0, black 1."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("minilora", [ZERO, COLOURS["frozen"], "#111111"])
