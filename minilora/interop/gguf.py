"""Llama and Qwen2 from a .gguf file: config, weights, and the tokenizer that is in it.

In files of the architecture "llama", the two numbers that rotary positions turn together are
neighbours (2i, 2i + 1) in the rows of q and k; here, as in transformers, they are i and i + half.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..backend import asarray
from ..backend.flags import quietly
from ..checks import describe, warn
from ..data.tokenizers import BPE, Added, Template
from ..data.tokenizers.patterns import PATTERNS
from ..files import gguf
from ..files.blame import blamed
from ..files.safetensors import Entry
from ..models.llama import Llama, LlamaConfig
from ..models.pretrained import give_tokenizer
from .names import LETTERS
from .tensors import check, check_dtype, zeros

SIZES = {  # our setting -> its key, behind "llama."
    "n_positions": "context_length", "d_model": "embedding_length", "n_layers": "block_count",
    "n_heads": "attention.head_count", "n_kv_heads": "attention.head_count_kv",
    "d_ff": "feed_forward_length", "eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
MODULES = {  # our path of a module -> theirs
    "tok": "token_embd", "ln_f": "output_norm", "head": "output", "ln1": "attn_norm",
    "ln2": "ffn_norm", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
    "attn.o": "attn_output", "mlp.gate": "ffn_gate", "mlp.up": "ffn_up", "mlp.down": "ffn_down",
}
CONTROL, USER = 3, 4  # values of token_type: special tokens, and others that are no words
ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> theirs


def load_gguf(path: str | os.PathLike[str], dtype: Any = "float32") -> Llama:
    """Return the model in a GGUF file, in eval mode; see `Llama.from_gguf`."""
    check_dtype("from_gguf", dtype)
    with gguf.opened(path) as file, blamed(path):
        config = config_of(file)
        rng = zeros(entry.shape for entry in file.tensors.values())
        model = Llama(config, rng=rng, dtype=dtype)
        fill(model, file)
        give_tokenizer(model, tokenizer_of(file.settings))
    return model.eval()


def config_of(file: gguf.File) -> LlamaConfig:
    """Return our config. Raises ValueError for another architecture, and for settings with which
    the model computes something else than ours.
    """
    kind = file.settings.get("general.architecture")
    if kind not in ("llama", "qwen2"):
        raise ValueError(f"its general.architecture is {describe(kind)}: read are llama and qwen2")
    theirs = {key.removeprefix(f"{kind}."): value for key, value in file.settings.items()
              if key.startswith(f"{kind}.")}
    theirs.setdefault("attention.head_count_kv", theirs.get("attention.head_count"))
    theirs.setdefault("rope.freq_base", 10000.0)
    if absent := [f"{kind}.{key}" for key in SIZES.values() if theirs.get(key) is None]:
        raise ValueError(f"it does not have {', '.join(absent)}")
    ours: Any = {name: theirs.pop(key) for name, key in SIZES.items()}
    if "token_embd.weight" not in file.tensors:
        raise ValueError("it has no token_embd.weight")
    ours["vocab_size"] = file.tensors["token_embd.weight"].shape[0]
    ours["tied"] = "output.weight" not in file.tensors
    ours["qkv_bias"] = "blk.0.attn_q.bias" in file.tensors
    if type(ours["eps"]) is float:
        ours["eps"] = float(f"{ours['eps']:.6g}")  # 1e-5 is stored as the float32 next to it
    config = LlamaConfig(**ours)
    width = config.d_model // config.n_heads
    allowed = {"vocab_size": config.vocab_size, "rope.dimension_count": width,
               "attention.key_length": width, "attention.value_length": width,
               "rope.scaling.type": "none"}
    if others := [f"{kind}.{key} ({describe(value)})" for key, value in sorted(theirs.items())
                  if allowed.get(key) != value]:
        raise ValueError(f"it has settings that are not computed here: {', '.join(others)}")
    return config


def fill(model: Llama, file: gguf.File) -> None:
    """Copy the tensors into the model, a piece at a time.

    Raises ValueError, before the first piece, with all names that do not fit, and later for numbers
    that are not finite.
    """
    wanted = {named(name): (name, p) for name, p in model.named_parameters()}
    shapes = {name: tuple(p.shape) for name, (_, p) in wanted.items()}
    widened = {name: Entry("F32", x.shape, x.start) for name, x in file.tensors.items()}
    check("this Llama", widened, shapes)
    for theirs, (name, p) in wanted.items():
        order = rows_of(name, model.config, file.settings["general.architecture"])
        for rows, numbers in file.pieces(theirs):
            piece = quietly(numbers.astype, str(p.dtype))
            if not np.isfinite(piece).all():
                raise ValueError(f"{theirs} has numbers that are not finite in {p.dtype}")
            p.data[rows if order is None else asarray(order[rows])] = asarray(piece)


def named(name: str) -> str:
    """Return their name of a parameter: blk.0.attn_q.weight for blocks.0.attn.q.W."""
    path, _, letter = name.rpartition(".")
    block, inner = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+)", path).groups()  # type: ignore[union-attr]
    return f"{'' if block is None else f'blk.{block}.'}{MODULES[inner]}.{LETTERS[letter]}"


def rows_of(name: str, c: LlamaConfig, architecture: str) -> np.ndarray | None:
    """Return which row here each row there is; None: the same one."""
    heads = {"q": c.n_heads, "k": c.n_kv_heads}.get(name.split(".")[-2])
    if heads is None or architecture != "llama":
        return None
    halves = np.arange(heads * c.d_model // c.n_heads).reshape(heads, 2, -1)
    return halves.swapaxes(1, 2).reshape(-1)


def tokenizer_of(settings: Mapping[str, Any]) -> BPE | None:
    """Return the tokenizer, or None: with a warning if it is one that is not read."""
    theirs = {key.removeprefix("tokenizer.ggml."): value for key, value in settings.items()
              if key.startswith("tokenizer.ggml.")}
    kind, pattern = theirs.get("model"), theirs.get("pre")
    if kind is None:
        return None
    if kind != "gpt2" or pattern not in PATTERNS or theirs.get("add_space_prefix"):
        warn(f"model.tokenizer is None: it is {describe(kind)}, split by {describe(pattern)}, and "
             f"read are byte-level ones (gpt2), split by {', '.join(PATTERNS)}")
        return None
    tokens, merges = theirs.get("tokens"), theirs.get("merges")
    kinds = theirs.get("token_type", [1] * len(tokens or ()))
    if not isinstance(tokens, list) or not isinstance(merges, list) or len(kinds) != len(tokens):
        raise ValueError("its tokenizer has no lists of tokens, of their types and of merges")
    added = {token: Added(i, special=kinds[i] == CONTROL) for i, token in enumerate(tokens)
             if kinds[i] in (CONTROL, USER)}
    roles = {ours: theirs[f"{name}_token_id"] for ours, name in ROLES.items()
             if f"{name}_token_id" in theirs}
    begins = [(roles["bos"], 0)] if theirs.get("add_bos_token") and "bos" in roles else []
    return BPE.from_lists(
        tokens, merges, pattern=pattern, added=added, roles=roles, nfc=pattern == "qwen2",
        whole_words=pattern == "llama-bpe",
        template=Template((*begins, ("A", 0)), (*begins, ("A", 0), ("B", 1))))
