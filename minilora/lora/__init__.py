"""LoRA (arXiv 2106.09685): what it computes, how a model takes it on and off, how it is kept."""

from .convert import activate, adaptable, attach, detach, disabled, matches, merge, merged, swap
from .files import load, save
from .layers import Adapter, LoRAConfig, LoRAEmbedding, LoRALayer, LoRALinear, parts

__all__ = [
    "Adapter", "LoRAConfig", "LoRAEmbedding", "LoRALayer", "LoRALinear", "activate", "adaptable",
    "attach", "detach", "disabled", "load", "matches", "merge", "merged", "parts", "save", "swap",
]  # fmt: skip
