"""Files of other packages: models and adapters in folders as Hugging Face lays them out, and GGUF.

names.py maps names and layouts of tensors, settings.py maps configs, checkpoints.py reads and
writes the folders, peft/ those of adapters, gguf.py reads the files of llama.cpp. Rooms below
reach this one through `minilora/slots.py`.
"""

import importlib
from typing import Any

_FILES = {  # function -> its file, which is loaded on first use
    "load": "checkpoints", "save": "checkpoints", "load_gguf": "gguf",
    "load_peft": "peft.reading", "save_peft": "peft.writing",
}
__all__ = list(_FILES)


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"minilora.interop has no {name!r}: it has {', '.join(_FILES)}")
    return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
