"""Is a merge right? `verify` proves it; `compare` and `layer_bound` say what rounding may do."""

from .bounds import Comparison, compare, gamma, layer_bound
from .verification import Verification, verify
from .weights import Weight

__all__ = ["Comparison", "Verification", "Weight", "compare", "gamma", "layer_bound", "verify"]
