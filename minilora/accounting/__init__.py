"""What training costs: counted on arrays without numbers, and measured on real ones.

`count` counts parameters, `ledger` the memory of one step of a live model, in bytes, and `plan` the
memory and the work of one step of a model of any size. `UNITS` says what a `Cost` counts. `traffic`
plans what several ranks send.
"""

from typing import Any

from ..backend.shapes import Cost
from ..models.families import SHAPES
from .ledger import Ledger, Row, ledger
from .parameters import Count, count
from .plan import COMPARED, UNITS, Plan, label, plan
from .traffic import NETWORKS, Network, Traffic, traffic

__all__ = [
    "COMPARED", "NETWORKS", "SHAPES", "UNITS", "Cost", "Count", "Ledger", "Network", "Plan", "Row",
    "Traffic", "count", "label", "ledger", "plan", "traffic",
]


def __getattr__(name: str) -> Any:
    if name == "told":
        raise AttributeError("accounting.told is called accounting.label now")
    raise AttributeError(f"minilora.accounting has no {name!r}: it has {', '.join(__all__)}")
