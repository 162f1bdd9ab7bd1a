"""The order in which the report answers: does LoRA do what the paper says?"""

from __future__ import annotations

from .experiment import NAMES

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (  # the heading, and its experiments
    ("The method", ("method",)),
    ("What it saves", ("counts", "throughput", "latency", "switch")),
    ("The results of the paper", (
        "glue", "nlg", "gpt3", "params", "matrices", "rank", "subspace", "amplification", "lowdata",
    )),
    ("What has been learned since",
     tuple(name for name, where in NAMES.items() if where == "beyond")),
)
BRIEF = (
    "The brief that this project was made from says that query and key are the best pair of "
    "matrices, and that r = 4 is the best rank. The paper's tables say otherwise. Both sentences "
    "are claims here, beside the paper's own, and what is measured decides."
)


def in_order(names: list[str]) -> list[str]:
    """Return names of experiments in the report's order."""
    order = [name for _, section in SECTIONS for name in section]
    return sorted(names, key=order.index)
