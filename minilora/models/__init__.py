"""Model families: shared parts in transformer.py, one file per family, models in files."""

import importlib
from typing import Any

_FILES = {  # public name -> its file, which is loaded on first use
    "GPT2": "gpt2", "GPT2Config": "gpt2", "Bert": "bert", "BertConfig": "bert",
    "Roberta": "roberta", "RobertaConfig": "roberta", "Deberta": "deberta",
    "DebertaConfig": "deberta", "Llama": "llama", "LlamaConfig": "llama",
    "SHAPES": "families", "build": "families",
    "load_base": "pretrained", "load_model": "pretrained", "save_model": "pretrained",
}
__all__ = list(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"minilora.models has no {name!r}: it has {', '.join(_FILES)}")
    return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
