"""What training costs, read off the real code: on arrays without numbers, and on live ones."""

from ..backend.shapes import Cost
from ..config import SHAPES
from .ledger import Ledger, Row, ledger
from .parameters import Count, count
from .plan import COMPARED, Plan, plan, told

__all__ = [
    "COMPARED", "SHAPES", "Cost", "Count", "Ledger", "Plan", "Row", "count", "ledger", "plan",
    "told",
]  # fmt: skip
