"""Model families: the parts in transformer.py, then one file per family; whole models in files."""

from ..config import GPT2Config
from .gpt2 import GPT2
from .pretrained import load_base, load_model, save_model

__all__ = ["GPT2", "GPT2Config", "load_base", "load_model", "save_model"]
