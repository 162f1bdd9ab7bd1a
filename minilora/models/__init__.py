"""Model families: the parts in transformer.py, then one file per family; whole models in files."""

from ..config import BertConfig, DebertaConfig, GPT2Config, RobertaConfig
from .bert import Bert
from .deberta import Deberta
from .families import build
from .gpt2 import GPT2
from .pretrained import load_base, load_model, save_model
from .roberta import Roberta

__all__ = [
    "GPT2", "Bert", "BertConfig", "Deberta", "DebertaConfig", "GPT2Config", "Roberta",
    "RobertaConfig", "build", "load_base", "load_model", "save_model",
]  # fmt: skip
