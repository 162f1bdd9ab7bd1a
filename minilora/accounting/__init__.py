"""What training costs, read off the real code: on arrays without numbers, and on live ones."""

from ..backend.shapes import Cost
from ..models.families import SHAPES
from .ledger import Ledger, Row, ledger
from .parameters import Count, count
from .plan import COMPARED, Plan, label, plan

__all__ = [
    "COMPARED",
    "SHAPES",
    "Cost",
    "Count",
    "Ledger",
    "Plan",
    "Row",
    "count",
    "label",
    "ledger",
    "plan",
]
