"""The experiments by name, and the order in which the report answers with them."""

from __future__ import annotations

NAMES: dict[str, str] = {  # the method, results 1 to 7, the advantages, what is known since
    "method": "paper", "counts": "paper",
    "glue": "paper", "nlg": "paper", "gpt3": "paper", "params": "paper", "matrices": "paper",
    "rank": "paper", "subspace": "paper", "amplification": "paper", "latency": "paper",
    "throughput": "paper", "switch": "paper", "lowdata": "paper", "alpha": "beyond",
    "variants": "beyond", "lr-ratio": "beyond", "where": "beyond", "asymmetry": "beyond",
    "intruders": "beyond", "forgetting": "beyond", "real": "real",
}
SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (  # the heading, and its experiments
    ("The method", ("method",)),
    ("What it saves", ("counts", "throughput", "latency", "switch")),
    ("The results of the paper", (
        "glue", "nlg", "gpt3", "params", "matrices", "rank", "subspace", "amplification", "lowdata",
    )),
    ("What has been learned since",
     tuple(name for name, where in NAMES.items() if where == "beyond")),
    ("On a real model and real sentences", ("real",)),
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
