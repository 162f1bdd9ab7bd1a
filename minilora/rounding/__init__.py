"""Is a merge right? `verify` proves it; `compare` and `layer_bound` say what rounding may do."""

from ..lora.layers import Adapter as Adapter  # first: all of lora is there, which hands on `verify`
from .bounds import Comparison, compare, gamma, layer_bound, parts
from .verification import Verification, verify
from .weights import Weight

__all__ = [
    "Comparison", "Verification", "Weight", "compare", "gamma", "layer_bound", "parts", "verify",
]
