"""What training costs: parameters and bytes, predicted from shapes and measured on live arrays."""

from .ledger import Ledger, Row, ledger
from .parameters import Count, count

__all__ = ["Count", "Ledger", "Row", "count", "ledger"]
