"""One palette, safe for the colour-blind, with one meaning everywhere."""

from __future__ import annotations

import re

COLOURS = {
    "frozen": "#7890A8",  # W0, and a model that is only W0
    "A": "#E08A00",
    "B": "#009E73",
    "LoRA": "#E08A00",  # a model that trains A and B
    "merged": "#7B3FA0",  # W0 + ΔW in one array
    "full": "#111111",  # all of W trained
    "wrong": "#C2262E",  # what a check catches; never told by colour alone
}
OTHERS = ("#0072B2", "#CC79A7", "#8C6D31", "#56B4E9")  # for names without a meaning of their own
ROWS = {  # of memory: frozen and activations are grey, what is trained and what that costs orange
    "frozen weights": COLOURS["frozen"],
    "trained weights": "#A35F00",
    "gradients": "#E08A00",
    "Adam moments": "#F7C873",
    "activations": "#D9DCE0",
}
_SAME = {"W0": "frozen", "base": "frozen", "unmerged": "LoRA", "adapted": "LoRA"}
BELOW, ZERO, ABOVE = "#1B4F8A", "#FFFFFF", "#8C4A00"  # numbers: negative blue, positive brown


def meant(label: str) -> str:
    """The meaning of the first word of `label` that has one; "" where there is none."""
    words = (_SAME.get(word, word) for word in re.findall("W0|[A-Za-z]+", label))
    return next((word for word in words if word in COLOURS), "")


def colour(label: str, i: int = 0) -> str:
    """The colour of the first word of `label` that has a meaning, else the i-th of the others."""
    return COLOURS[name] if (name := meant(label)) else OTHERS[i % len(OTHERS)]
