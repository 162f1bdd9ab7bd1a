"""What training costs: counted on arrays without numbers, and measured on real ones.

`count` counts parameters, `ledger` the memory of one step of a live model, in bytes, and `plan` the
memory and the work of one step of a model of any size. The fields of a `Cost`:

products     floating-point operations of matrix products: 2 for each multiply-add, so 2·m·n·k for
             (m, k) @ (k, n)
elementwise  numbers that elementwise functions write and reductions read
moved        bytes that all functions read and write
calls        calls of functions that compute; on a device, each starts a kernel
depth        calls in the longest chain in which each call waits for the one before
"""

from typing import Any

from ..backend.shapes import Cost
from ..models.families import SHAPES
from .ledger import Ledger, Row, ledger
from .parameters import Count, count
from .plan import COMPARED, Plan, label, plan

__all__ = [
    "COMPARED", "SHAPES", "Cost", "Count", "Ledger", "Plan", "Row", "count", "label", "ledger",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name == "told":
        raise AttributeError("accounting.told is called accounting.label now")
    raise AttributeError(f"minilora.accounting has no {name!r}: it has {', '.join(__all__)}")
