"""Proof of a merge, `verify`, and bounds on its rounding errors, `compare` and `layer_bound`."""

from .bounds import Comparison, compare, gamma, layer_bound
from .verification import Verification, verify
from .weights import Weight

__all__ = ["Comparison", "Verification", "Weight", "compare", "gamma", "layer_bound", "verify"]
