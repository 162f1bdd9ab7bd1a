"""Names of modules and layouts of weights in the files of transformers, for each family.

A table maps our path of a module to its Place there; {} is the number of the block. Our W, g and b
are weight, weight and bias there. The prefix of the base model ("bert.") is no part of the tables:
files have it or not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..backend import Array
from ..models.bert import BertConfig
from ..models.config import ModelConfig
from ..models.deberta import DebertaConfig
from ..models.gpt2 import GPT2Config
from ..models.inputs import EncoderConfig
from ..models.llama import LlamaConfig
from ..models.roberta import RobertaConfig

LETTERS = {"W": "weight", "g": "weight", "b": "bias"}


class Place(NamedTuple):
    """Where a module is in their model, and how it stores its weight.

    path        its path there
    turned      its weight is stored (in, out), as in GPT-2's Conv1D
    part        it is this one of three parts, side by side along the last axis, of a fused module;
                None: it is a module of its own
    convolves   its weight is (out, in, size), and ours (out, size · in)
    """

    path: str
    turned: bool = False
    part: int | None = None
    convolves: bool = False

    def view(self, x: Array) -> Array:
        """Return a view of our weight (out, in), or bias (out,), with the axes it has there."""
        if self.convolves and x.ndim == 2:  # (out, size · in) -> (out, in, size)
            return x.reshape(x.shape[0], -1, x.shape[0]).transpose(0, 2, 1)
        return x.T if self.turned and x.ndim > 1 else x  # a bias is no matrix


class Head(NamedTuple):
    """A model class there, and the modules that it adds to the base model."""

    architecture: str
    modules: Mapping[str, str]


@dataclass(frozen=True)
class Layout:
    """How the files of one family name their tensors.

    prefix     of the base model's modules, in the files of a model with a head
    modules    our path -> its Place, in the base model
    heads      our kind of head -> a Head; the first one is the first that is looked for
    outside    the beginnings of the names that never have the prefix
    copies     a name under which files may store another tensor once more -> that tensor's name
    ignored    tensors that are no weights: masks and positions that the code computes
    left       parts of other heads, if the model has none of them
    renamed    what older and other versions wrote -> the name here
    """

    prefix: str
    modules: Mapping[str, Place | str]
    heads: Mapping[str, Head]
    outside: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    ignored: str = r"(?!)"
    left: str = r"(?!)"
    renamed: Mapping[str, str] = field(default_factory=dict)

    def place(self, path: str, kind: str) -> Place:
        """Return the place of our module at this path, for a model with this kind of head."""
        number = re.search(r"\d+", path)
        known = {**self.modules, **self.heads[kind].modules}
        place = known[re.sub(r"\d+", "{}", path, count=1)]
        there = place if isinstance(place, Place) else Place(place)
        return there._replace(path=there.path.format(number[0] if number else ""))

    def full(self, name: str, kind: str) -> str:
        """Return the name with the prefix, if a model with this kind of head writes one."""
        bare = kind in ("pooler", "none")  # a file of the base model alone
        return name if bare or name.startswith(self.outside) else f"{self.prefix}.{name}"

    def short(self, name: str) -> str:
        """Return the name of a tensor in a file as it is here: current, and without the prefix."""
        name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        name = name.removeprefix(f"{self.prefix}.")
        for pattern, new in self.renamed.items():
            name = re.sub(pattern, new, name)
        return name


GPT2 = Layout(
    "transformer",
    {
        "tok": "wte", "pos": "wpe", "ln_f": "ln_f",
        "blocks.{}.ln1": "h.{}.ln_1", "blocks.{}.ln2": "h.{}.ln_2",
        **{f"blocks.{{}}.attn.{letter}": Place("h.{}.attn.c_attn", turned=True, part=i)
           for i, letter in enumerate("qkv")},
        "blocks.{}.attn.o": Place("h.{}.attn.c_proj", turned=True),
        "blocks.{}.mlp.up": Place("h.{}.mlp.c_fc", turned=True),
        "blocks.{}.mlp.down": Place("h.{}.mlp.c_proj", turned=True),
    },
    {"decoder": Head("GPT2LMHeadModel", {})},
    outside=("lm_head.",),
    copies={"lm_head.weight": "wte.weight"},
    ignored=r"h\.\d+\.attn\.(masked_)?bias",
)

EMBEDDINGS = {
    "tok": "embeddings.word_embeddings", "pos": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings", "ln_e": "embeddings.LayerNorm",
}
BLOCK = {
    "blocks.{}.attn.o": "encoder.layer.{}.attention.output.dense",
    "blocks.{}.ln1": "encoder.layer.{}.attention.output.LayerNorm",
    "blocks.{}.mlp.up": "encoder.layer.{}.intermediate.dense",
    "blocks.{}.mlp.down": "encoder.layer.{}.output.dense",
    "blocks.{}.ln2": "encoder.layer.{}.output.LayerNorm",
}
ENCODER = {
    **EMBEDDINGS, **BLOCK,
    "blocks.{}.attn.q": "encoder.layer.{}.attention.self.query",
    "blocks.{}.attn.k": "encoder.layer.{}.attention.self.key",
    "blocks.{}.attn.v": "encoder.layer.{}.attention.self.value",
}
WORDS = {
    "head.dense": "cls.predictions.transform.dense",
    "head.ln": "cls.predictions.transform.LayerNorm", "head": "cls.predictions",
}
POOLED = {"head.dense": "pooler.dense"}
CLASSES = {"head.out": "classifier", **POOLED}
COMPUTED = r"embeddings\.(position_ids|token_type_ids)"

BERT = Layout(
    "bert",
    ENCODER,
    {"words": Head("BertForMaskedLM", WORDS),
     "classes": Head("BertForSequenceClassification", CLASSES),
     "pooler": Head("BertModel", POOLED), "none": Head("BertModel", {})},
    outside=("cls.", "classifier."),
    copies={"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored=COMPUTED,
    left=r"(pooler|cls\.seq_relationship)\..*",
)

ROBERTA = Layout(
    "roberta",
    ENCODER,
    {"words": Head("RobertaForMaskedLM", {
        "head.dense": "lm_head.dense", "head.ln": "lm_head.layer_norm", "head": "lm_head"}),
     "classes": Head("RobertaForSequenceClassification", {
         "head.out": "classifier.out_proj", "head.dense": "classifier.dense"}),
     "pooler": Head("RobertaModel", POOLED), "none": Head("RobertaModel", {})},
    outside=("lm_head.", "classifier."),
    copies={"lm_head.decoder.weight": "embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias"},
    ignored=COMPUTED,
    left=r"pooler\..*",
)

DEBERTA = Layout(
    "deberta",
    {
        **EMBEDDINGS, **BLOCK,
        "blocks.{}.attn.q": "encoder.layer.{}.attention.self.query_proj",
        "blocks.{}.attn.k": "encoder.layer.{}.attention.self.key_proj",
        "blocks.{}.attn.v": "encoder.layer.{}.attention.self.value_proj",
        "blocks.{}.attn.pos_k": "encoder.layer.{}.attention.self.pos_key_proj",
        "blocks.{}.attn.pos_q": "encoder.layer.{}.attention.self.pos_query_proj",
        "rel": "encoder.rel_embeddings", "ln_r": "encoder.LayerNorm",
        "conv.mix": Place("encoder.conv.conv", convolves=True), "conv.ln": "encoder.conv.LayerNorm",
    },
    {"words": Head("DebertaV2ForMaskedLM", WORDS),
     "classes": Head("DebertaV2ForSequenceClassification", CLASSES),
     "none": Head("DebertaV2Model", {})},
    outside=("cls.", "classifier.", "pooler."),
    copies={"cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias"},
    ignored=COMPUTED,
    # the published files have positions, of their decoder for words, where the encoder has none
    left=r"((pooler|mask_predictions)\..*|embeddings\.position_embeddings\.weight)",
    renamed={r"^lm_predictions\.lm_head\.(dense|LayerNorm)": r"cls.predictions.transform.\1",
             r"^lm_predictions\.lm_head\.": "cls.predictions."},
)

LLAMA = Layout(
    "model",
    {
        "tok": "embed_tokens", "ln_f": "norm", "head": "lm_head",
        "blocks.{}.ln1": "layers.{}.input_layernorm",
        "blocks.{}.ln2": "layers.{}.post_attention_layernorm",
        **{f"blocks.{{}}.attn.{letter}": f"layers.{{}}.self_attn.{letter}_proj"
           for letter in "qkvo"},
        **{f"blocks.{{}}.mlp.{name}": f"layers.{{}}.mlp.{name}_proj"
           for name in ("gate", "up", "down")},
    },
    {"llama": Head("LlamaForCausalLM", {}), "qwen2": Head("Qwen2ForCausalLM", {})},
    outside=("lm_head.",),
    copies={"lm_head.weight": "embed_tokens.weight"},
    ignored=r".*rotary_emb\.inv_freq",
)

LAYOUTS: dict[type[ModelConfig], Layout] = {
    GPT2Config: GPT2, BertConfig: BERT, RobertaConfig: ROBERTA, DebertaConfig: DEBERTA,
    LlamaConfig: LLAMA,
}


def tensors_of(model: Any) -> dict[str, list[tuple[str, Place]]]:
    """Return, by its short name there, the parts of each tensor: (our parameter, its place)."""
    layout, kind = layout_of(type(model.config)), kind_of(model.config)
    tensors = dict[str, list[tuple[str, Place]]]()
    for name, _ in model.named_parameters():
        path, _, letter = name.rpartition(".")
        place = layout.place(path, kind)
        tensors.setdefault(f"{place.path}.{LETTERS[letter]}", []).append((name, place))
    return {name: sorted(parts, key=lambda part: part[1].part or 0)
            for name, parts in tensors.items()}


def layout_of(config: type[ModelConfig]) -> Layout:
    """Return the layout of the family with this class of configs."""
    return LAYOUTS[config]


def kind_of(config: Any) -> str:
    """Return the kind of head of a model with this config: a key of `Layout.heads`."""
    if isinstance(config, EncoderConfig):
        return "classes" if config.num_labels else config.head
    if isinstance(config, LlamaConfig):
        return "qwen2" if config.qkv_bias else "llama"
    return "decoder"
