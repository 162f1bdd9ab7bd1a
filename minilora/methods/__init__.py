"""What the paper compares LoRA with (§2, §5.1), LoRA itself, and what came after it: one verb."""

from __future__ import annotations

from .adapters import AdapterD, AdapterH, AdapterL, AdapterP
from .applied import METHODS, Method, activate, apply, disabled, remove, trained_by
from .files import load, save
from .low_rank import LoRA, LoRAPreEmbed, LoRAPreLayer
from .prefix import PreEmbed, PreLayer, prompt
from .whole import BitFit, FTTop2, Full

__all__ = [
    "METHODS", "AdapterD", "AdapterH", "AdapterL", "AdapterP", "BitFit", "FTTop2", "Full", "LoRA",
    "LoRAPreEmbed", "LoRAPreLayer", "Method", "PreEmbed", "PreLayer", "activate", "apply",
    "disabled", "load", "prompt", "remove", "save", "trained_by",
]  # fmt: skip
