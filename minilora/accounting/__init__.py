"""What training costs, read off the real code: on arrays without numbers, and on live ones."""

from .ledger import Ledger, Row, ledger
from .parameters import Count, count
from .plan import SHAPES, Plan, plan

__all__ = ["SHAPES", "Count", "Ledger", "Plan", "Row", "count", "ledger", "plan"]
