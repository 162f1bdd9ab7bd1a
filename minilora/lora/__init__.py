"""LoRA (arXiv 2106.09685): what it computes, how a model takes it on and off, how it is kept."""
from ..methods.combine import combine, per_row
from ..rounding.verification import verify  # last: it needs the others
from .config import LoRAConfig
from .convert import activate, adaptable, attach, detach, disabled, merge, merged, set_adapter
from .files import load, save
from .layers import Adapter, LoRAEmbedding, LoRALayer, LoRALinear

__all__ = [
    "Adapter", "LoRAConfig", "LoRAEmbedding", "LoRALayer", "LoRALinear", "activate", "adaptable",
    "attach", "combine", "detach", "disabled", "load", "merge", "merged", "per_row", "save",
    "set_adapter", "verify"]
