"""Small GGUF files of our models, written by the package of llama.cpp's authors."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from minilora.data.tokenizers.bpe import BPE

NAMES = {
    "tok": "token_embd", "ln_f": "output_norm", "head": "output", "ln1": "attn_norm",
    "ln2": "ffn_norm", "q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output",
    "gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down",
}


def tokenizer() -> BPE:
    """Three special tokens, one of which is no control token, all bytes and three merges."""
    from minilora.data.tokenizers.bpe import LETTER
    from minilora.data.tokenizers.special import Added

    added = {"<s>": Added(0), "</s>": Added(1), "<tab>": Added(2, special=False)}
    tokens = [*added, *LETTER, "ab", "abc", "Ġabc"]
    return BPE.from_lists(tokens, ["a b", "ab c", "Ġ abc"], pattern="smollm", added=added,
                          roles={"bos": 0, "eos": 1})


def their_name(name: str) -> str:
    path, letter = name.rsplit(".", 1)
    block = f"blk.{path.split('.')[1]}." if path.startswith("blocks") else ""
    return f"{block}{NAMES[path.split('.')[-1]]}.{'bias' if letter == 'b' else 'weight'}"


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """As convert_hf_to_gguf.py of llama.cpp does it: i and i + half become neighbours."""
    return x.reshape(heads, 2, len(x) // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(path: Path, model, architecture: str = "llama", kind: str = "F32", change=None) -> None:
    """Write the model; change(writer, arrays) may add settings and change tensors before."""
    c, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(c.n_positions)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.n_layers)
    writer.add_feed_forward_length(c.d_ff or 4 * c.d_model)
    writer.add_head_count(c.n_heads)
    writer.add_head_count_kv(c.n_kv_heads)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_rope_dimension_count(c.d_model // c.n_heads)
    if (own := model.tokenizer) is not None:
        kinds = {a.id: 3 if a.special else 4 for a in own.added.values()}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(own.pattern)
        writer.add_token_list([own._text(i) for i in range(own.vocab_size)])
        writer.add_token_types([kinds.get(i, 1) for i in range(own.vocab_size)])
        writer.add_token_merges([f"{own._text(a)} {own._text(b)}" for a, b in own.merges])
        writer.add_bos_token_id(own.roles["bos"])
        writer.add_eos_token_id(own.roles["eos"])
    arrays = {}
    for name, x in model.state_dict().items():
        x = x.astype("float32")
        if architecture == "llama" and (".q." in name or ".k." in name):
            x = permuted(x, c.n_heads if ".q." in name else c.n_kv_heads)
        arrays[their_name(name)] = x
    if change is not None:
        change(writer, arrays)
    for name, x in arrays.items():
        stored = gguf.GGMLQuantizationType[kind if x.ndim > 1 else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(x, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def widened(x: np.ndarray, kind: str) -> np.ndarray:
    """What is left of a matrix in a file of this kind."""
    stored = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(x.astype("float32"), stored), stored)


def small(seed: int = 0, **sizes):
    """A Llama whose matrices have rows of complete blocks, with the tokenizer."""
    from strategies import made

    sizes = {"vocab_size": 262, "d_model": 64, "d_ff": 32, "n_heads": 4, "n_kv_heads": 2,
             "n_layers": 2, "qkv_bias": False} | sizes
    model = made("llama", seed, "float32", **sizes)
    model.tokenizer = tokenizer()
    return model
