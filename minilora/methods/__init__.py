"""What the paper compares LoRA with (§2, §5.1), LoRA itself, and what came after it: one verb."""

from __future__ import annotations

from .adapters import AdapterD, AdapterH, AdapterL, AdapterP
from .applied import METHODS, Method, activate, apply, disabled, remove, trained_by
from .combine import combine, per_row
from .dora import DoRA
from .files import load, save
from .lora_plus import LoRAPlus
from .low_rank import LoRA, LoRAPreEmbed, LoRAPreLayer, RsLoRA
from .pissa import PiSSA
from .prefix import PreEmbed, PreLayer, prompt
from .whole import BitFit, FTTop2, Full

__all__ = [
    "METHODS",
    "AdapterD",
    "AdapterH",
    "AdapterL",
    "AdapterP",
    "BitFit",
    "DoRA",
    "FTTop2",
    "Full",
    "LoRA",
    "LoRAPlus",
    "LoRAPreEmbed",
    "LoRAPreLayer",
    "Method",
    "PiSSA",
    "PreEmbed",
    "PreLayer",
    "RsLoRA",
    "activate",
    "apply",
    "combine",
    "disabled",
    "load",
    "per_row",
    "prompt",
    "remove",
    "save",
    "trained_by",
]
