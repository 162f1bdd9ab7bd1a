"""Configs of transformers (config.json) as ours, and ours as theirs.

A setting with which their model computes something else than ours is refused by its name. Dropout
of the attention weights is not: ours has none, and it acts in training only. What is not known here
and is not empty is warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..checks import describe, warn
from ..models.bert import BertConfig
from ..models.config import ModelConfig
from ..models.deberta import DebertaConfig
from ..models.gpt2 import GPT2Config
from ..models.llama import LlamaConfig
from ..models.roberta import RobertaConfig

Raw = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How one family's config.json is ours.

    config    our class
    types     the values of model_type there; the first is written
    names     our setting -> its key there
    absent    key there -> its value where a file does not have it; other keys of `names` must be
              there
    fixed     key there -> the values that mean what is computed here; the first also stands for an
              absent key, and is written
    read      theirs -> theirs as `names` expects it, with our units
    write     the opposite, after `names`
    """

    config: type[ModelConfig]
    types: tuple[str, ...]
    names: Mapping[str, str]
    absent: Raw = field(default_factory=dict)
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    read: Callable[[Raw], Raw] = dict
    write: Callable[[Raw, Any], Raw] = lambda raw, config: raw


NO_COMPUTATION = {  # of inputs to logits
    "architectures", "model_type", "_name_or_path", "name_or_path", "transformers_version", "dtype",
    "torch_dtype", "use_cache", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
    "sep_token_id", "cls_token_id", "mask_token_id", "unk_token_id", "id2label", "label2id",
    "num_labels", "finetuning_task", "problem_type", "gradient_checkpointing", "attn_pdrop",
    "attention_probs_dropout_prob", "attention_dropout", "classifier_dropout", "pooler_dropout",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
    "summary_use_proj", "task_specific_params", "n_ctx", "output_past", "directionality",
    "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_type",
    "pooler_size_per_head", "padding_idx", "_attn_implementation", "attn_implementation",
    "output_attentions", "output_hidden_states", "return_dict", "model_max_length", "language",
    "legacy", "_num_labels", "chunk_size_feed_forward", "is_encoder_decoder", "tokenizer_class",
    "prefix", "max_window_layers", "pretraining_tp", "num_classes",
    "is_llama_config", "transformers.js_config",
}


def _gpt2(raw: Raw) -> Raw:
    for key in ("embd_pdrop", "resid_pdrop"):  # transformers' own values for an absent key
        raw.setdefault(key, 0.1)
    if (given := raw.pop("embd_pdrop")) != raw["resid_pdrop"]:
        raise ValueError(
            f"embd_pdrop is {given} and resid_pdrop {raw['resid_pdrop']}: here both are one "
            "setting, so write the same number for both")
    return {**raw, "n_inner": raw.get("n_inner") or 0}


def _to_gpt2(raw: Raw, config: GPT2Config) -> Raw:
    return {**raw, "embd_pdrop": config.dropout, "attn_pdrop": 0.0,
            "n_inner": config.d_ff or None}


def _roberta(raw: Raw) -> Raw:
    padding, rows = raw.get("pad_token_id", 1), raw.get("max_position_embeddings")
    if type(padding) is not int or type(rows) is not int:
        raise ValueError("pad_token_id and max_position_embeddings must be integers")
    return {**raw, "max_position_embeddings": rows - padding - 1}


def _to_roberta(raw: Raw, config: RobertaConfig) -> Raw:
    return {**raw, "max_position_embeddings": config.n_positions + config.padding_id + 1,
            "bos_token_id": 0, "eos_token_id": 2}


def _deberta(raw: Raw) -> Raw:
    raw = {**_DEBERTA_ABSENT, **raw}
    kinds, norm = raw["pos_att_type"], raw["norm_rel_ebd"]
    if isinstance(kinds, str):
        kinds = [kind.strip() for kind in kinds.lower().split("|") if kind.strip()]
    if not raw.pop("relative_attention"):
        kinds = []
    if norm not in ("none", "layer_norm"):
        raise ValueError(f'norm_rel_ebd is {norm!r}: known are "none" and "layer_norm"')
    for key, same in (("attention_head_size", None), ("embedding_size", "hidden_size"),
                      ("pooler_hidden_size", "hidden_size")):
        whole = raw.get(same) if same else _quotient(raw, "hidden_size", "num_attention_heads")
        if raw.pop(key, whole) != whole:
            raise ValueError(f"{key} is not {whole}, which is the only size computed here")
    for key in ("position_buckets", "max_relative_positions"):  # -1: none
        raw[key] = 0 if raw[key] == -1 else raw[key]
    return {**raw, "pos_att_type": kinds or [], "norm_rel_ebd": norm == "layer_norm"}


def _to_deberta(raw: Raw, config: DebertaConfig) -> Raw:
    if config.z_steps > 1:
        raise ValueError(f"z_steps is {config.z_steps}, which transformers does not compute")
    return {
        **raw, "relative_attention": bool(config.pos_att_type),
        "pos_att_type": list(config.pos_att_type),
        "norm_rel_ebd": "layer_norm" if config.norm_rel_ebd else "none",
        "position_buckets": config.position_buckets or -1,
        "max_relative_positions": config.max_relative_positions or -1,
        "pooler_hidden_size": config.d_model, "pooler_dropout": config.dropout,
    }


def _llama(raw: Raw) -> Raw:
    """Rotary settings are on their own in older files, and in one object in newer ones."""
    rope = {"rope_theta": raw.pop("rope_theta", 10000.0)}
    for key in ("rope_scaling", "rope_parameters"):
        given = raw.pop(key, None) or {}
        if not isinstance(given, dict):
            raise ValueError(f"{key} is {describe(given)}, not an object")
        rope |= {name.removeprefix("rope_") if name == "rope_type" else name: value
                 for name, value in given.items()}
        if rope.pop("type", "default") != "default" or rope.keys() != {"rope_theta"}:
            raise ValueError(
                f"{key} is {given}: only plain rotary positions are computed here, with rope_theta")
    heads, layers = raw.get("num_attention_heads"), raw.pop("layer_types", None) or []
    if not isinstance(layers, list) or {*map(str, layers)} - {"full_attention"}:
        raise ValueError("layer_types has others than full_attention, which alone is computed here")
    width = _quotient(raw, "hidden_size", "num_attention_heads")
    if raw.pop("head_dim", width) not in (width, None):
        raise ValueError(f"head_dim is not {width}, which is the only size computed here")
    if not raw.get("use_sliding_window"):
        raw.pop("sliding_window", None)
    return {**raw, **rope, "num_key_value_heads": raw.get("num_key_value_heads") or heads,
            "qkv_bias": raw.get("model_type") == "qwen2"}


def _to_llama(raw: Raw, config: LlamaConfig) -> Raw:
    bias = raw.pop("qkv_bias")
    return {**raw, "model_type": "qwen2" if bias else "llama",
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta}}


def _quotient(raw: Raw, whole: str, parts: str) -> int | None:
    """Return raw[whole] / raw[parts]; None if they are not such numbers."""
    a, b = raw.get(whole), raw.get(parts)
    return a // b if type(a) is int and type(b) is int and b else None


_ENCODER = {
    "vocab_size": "vocab_size", "n_positions": "max_position_embeddings", "d_model": "hidden_size",
    "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads", "d_ff": "intermediate_size",
    "dropout": "hidden_dropout_prob", "eps": "layer_norm_eps", "n_types": "type_vocab_size",
}
_ENCODER_ABSENT = {"hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-12, "type_vocab_size": 2}
_ENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",), "position_embedding_type": ("absolute",), "is_decoder": (False,),
    "add_cross_attention": (False,), "tie_word_embeddings": (True,),
}
_DEBERTA_ABSENT = {
    "hidden_dropout_prob": 0.1, "layer_norm_eps": 1e-7, "type_vocab_size": 0,
    "relative_attention": False, "pos_att_type": None, "share_att_key": False,
    "position_buckets": -1, "max_relative_positions": -1, "norm_rel_ebd": "none",
    "position_biased_input": True, "conv_kernel_size": 0, "conv_act": "tanh",
}

SETTINGS = (
    Settings(
        GPT2Config, ("gpt2",),
        {"vocab_size": "vocab_size", "n_positions": "n_positions", "d_model": "n_embd",
         "n_layers": "n_layer", "n_heads": "n_head", "d_ff": "n_inner", "dropout": "resid_pdrop"},
        fixed={"activation_function": ("gelu_new", "gelu_pytorch_tanh"),
               "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
               "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
               "reorder_and_upcast_attn": (False, True), "tie_word_embeddings": (True,)},
        read=_gpt2, write=_to_gpt2,
    ),
    Settings(BertConfig, ("bert",), _ENCODER, _ENCODER_ABSENT, _ENCODER_FIXED),
    Settings(
        RobertaConfig, ("roberta", "xlm-roberta"), {**_ENCODER, "padding_id": "pad_token_id"},
        {**_ENCODER_ABSENT, "pad_token_id": 1}, _ENCODER_FIXED, _roberta, _to_roberta,
    ),
    Settings(
        DebertaConfig, ("deberta-v2",),
        {**_ENCODER, **{name: name for name in (
            "pos_att_type", "share_att_key", "position_buckets", "max_relative_positions",
            "norm_rel_ebd", "position_biased_input", "conv_kernel_size", "conv_act")}},
        _DEBERTA_ABSENT,
        {"hidden_act": ("gelu",), "pooler_hidden_act": ("gelu",), "conv_groups": (1,),
         "tie_word_embeddings": (True,)},
        _deberta, _to_deberta,
    ),
    Settings(
        LlamaConfig, ("llama", "qwen2"),
        {**{name: _ENCODER[name] for name in (
            "vocab_size", "n_positions", "d_model", "n_layers", "n_heads", "d_ff")},
         "n_kv_heads": "num_key_value_heads", "eps": "rms_norm_eps", "rope_theta": "rope_theta",
         "tied": "tie_word_embeddings", "qkv_bias": "qkv_bias"},
        {"rms_norm_eps": 1e-6, "tie_word_embeddings": False},
        {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,),
         "use_sliding_window": (False,), "rope_interleaved": (False,)},
        _llama, _to_llama,
    ),
)


def settings_of(model_type: Any) -> Settings:
    """Return the settings of a model_type. Raises ValueError for an unknown one."""
    for settings in SETTINGS:
        if model_type in settings.types:
            return settings
    known = ", ".join(kind for settings in SETTINGS for kind in settings.types)
    raise ValueError(f"its model_type is {describe(model_type)}: read are {known}")


def config_from(raw: Raw, **also: Any) -> ModelConfig:
    """Return our config for a config.json; also: settings that only the tensors show."""
    settings = settings_of(raw.get("model_type"))
    theirs = settings.read(dict(raw))
    for key, values in settings.fixed.items():
        if (value := theirs.pop(key, values[0])) not in values:
            raise ValueError(
                f"{key} is {describe(value)}, and {settings.config.__name__} computes with "
                f"{' or '.join(map(repr, values))} only")
    ours = {}
    for name, key in settings.names.items():
        if key not in theirs and key not in settings.absent:
            raise ValueError(f"it has no {key}")
        ours[name] = theirs.pop(key, settings.absent.get(key))
    _warn_of(theirs.keys() - NO_COMPUTATION, raw)
    config = settings.config(**ours, **also)
    return replace(config, d_ff=0) if config.d_ff == 4 * config.d_model else config


def _warn_of(unknown: Collection[str], raw: Raw) -> None:
    """Warn of unknown keys; those that are switched off, or empty, cannot act."""
    acting = [f"{key}={raw[key]!r}" for key in sorted(unknown) if raw.get(key)]
    if acting:
        warn(f"config.json has settings that are unknown here and not used: {', '.join(acting)}")


def config_to(config: ModelConfig) -> Raw:
    """Return the config.json of our config, without the names of classes and dtypes."""
    settings = next(s for s in SETTINGS if s.config is type(config))
    ours = asdict(config)
    theirs = {key: ours[name] for name, key in settings.names.items()}
    if not ours["d_ff"]:
        theirs[settings.names["d_ff"]] = 4 * config.d_model
    fixed = {key: values[0] for key, values in settings.fixed.items()}
    if labels := ours.get("num_labels", 0):
        fixed["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        fixed["label2id"] = {f"LABEL_{i}": i for i in range(labels)}
    if "hidden_dropout_prob" in theirs:
        fixed["attention_probs_dropout_prob"] = 0.0
    return {"model_type": settings.types[0], **fixed, **settings.write(theirs, config)}
