"""Names that other packages use for an argument, and the errors that give the name used here.

`our_words` decorates a public function or an `__init__`. A config calls `refuse` by itself.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OURS: dict[str, tuple[str, ...]] = {  # foreign name -> names here, the first accepted wins
    # sizes of a model
    "n_ctx": ("n_positions", "tokens"), "max_position_embeddings": ("n_positions",),
    "block_size": ("n_positions", "tokens"), "context_length": ("n_positions", "tokens"),
    "max_seq_len": ("n_positions", "tokens"),
    "n_embd": ("d_model",), "hidden_size": ("d_model",), "embed_dim": ("d_model",),
    "hidden_dim": ("d_model",),
    "n_layer": ("n_layers",), "num_layers": ("n_layers",), "num_hidden_layers": ("n_layers",),
    "n_head": ("n_heads",), "num_heads": ("n_heads",), "num_attention_heads": ("n_heads",),
    "nhead": ("n_heads",),
    "n_inner": ("d_ff",), "intermediate_size": ("d_ff",), "dim_feedforward": ("d_ff",),
    "layer_norm_eps": ("eps",), "layer_norm_epsilon": ("eps",), "type_vocab_size": ("n_types",),
    "pad_token_id": ("padding_id",), "num_classes": ("num_labels",),
    "hidden_dropout_prob": ("dropout",), "resid_pdrop": ("dropout",), "embd_pdrop": ("dropout",),
    # layers
    "in_features": ("d_in",), "out_features": ("d_out",), "use_bias": ("bias",),
    "num_embeddings": ("n",), "embedding_dim": ("d",), "normalized_shape": ("d",),
    "p": ("rate",), "epsilon": ("eps",),
    "torch_dtype": ("dtype",), "gradient_checkpointing": ("recompute",),
    "random_state": ("rng", "seed"), "generator": ("rng", "seed"), "seed": ("rng",),
    # adapters
    "rank": ("r",), "lora_r": ("r",), "lora_rank": ("r",), "lora_alpha": ("alpha",),
    "lora_dropout": ("dropout",), "target_modules": ("targets",), "modules_to_save": ("trainable",),
    "init_lora_weights": ("init",),
    "adapter_name": ("name",), "peft_config": ("config",), "lora_config": ("config",),
    "adapter_names": ("names", "name"), "is_trainable": ("trainable",),
    "combination_type": ("how",), "svd_rank": ("r",), "adapters": ("weights",),
    # files
    "save_directory": ("path",), "filename": ("path",), "file": ("path",), "model_id": ("path",),
    "pretrained_model_name_or_path": ("path", "name"), "model_name": ("name", "path"),
    "output_dir": ("checkpoint", "path"), "resume_from_checkpoint": ("resume",),
    "checkpoint_path": ("checkpoint", "path"),
    # optimizers and schedules
    "params": ("parameters",), "learning_rate": ("lr", "peak"), "max_lr": ("peak",),
    "base_lr": ("peak", "lr"), "min_lr": ("floor",), "eta_min": ("floor",),
    "beta1": ("betas",), "beta2": ("betas",), "decay": ("weight_decay",),
    "warmup_steps": ("warmup",), "num_warmup_steps": ("warmup",), "T_max": ("steps",),
    "init_scale": ("scale",), "growth_interval": ("patience",),
    # training
    "num_steps": ("steps",), "max_steps": ("steps",), "n_steps": ("steps",),
    "num_training_steps": ("steps",), "total_steps": ("steps",),
    "max_iters": ("steps",), "iterations": ("steps",),
    "gradient_accumulation_steps": ("accumulation_steps",), "grad_accum": ("accumulation_steps",),
    "accumulate_grad_batches": ("accumulation_steps",),
    "grad_clip": ("max_grad_norm",), "clip_grad_norm": ("max_grad_norm",),
    "gradient_clip_val": ("max_grad_norm",), "clipnorm": ("max_grad_norm",),
    "max_norm": ("max_grad_norm",), "max_grad_norm": ("max_norm",),
    "scheduler": ("schedule",), "lr_scheduler": ("schedule",), "lr_schedule": ("schedule",),
    "loss_fn": ("loss",), "criterion": ("loss",),
    "train_dataset": ("batches",), "train_dataloader": ("batches",), "dataloader": ("batches",),
    "dataset": ("batches",), "eval_dataset": ("held_out", "batches"),
    "validation_data": ("held_out", "batches"), "eval_steps": ("eval_every",),
    "eval_interval": ("eval_every",), "save_steps": ("save_every",),
    "logging_steps": ("log_every",), "log_interval": ("log_every",), "verbose": ("progress",),
    "scaler": ("loss_scale",), "grad_scaler": ("loss_scale",),
    # text
    "batch_size": ("batch",), "seq_len": ("tokens", "n_positions"), "window": ("tokens",),
    "seq_length": ("tokens", "n_positions"), "sequence_length": ("tokens", "n_positions"),
    "max_new_tokens": ("n_tokens",), "max_tokens": ("n_tokens",),
    "num_tokens": ("n_tokens", "tokens"), "input_ids": ("ids",), "prompt_ids": ("ids",),
    "use_cache": ("cache",), "val_fraction": ("held_out",), "test_size": ("held_out",),
}

SCHEDULE = "belongs to a schedule: fit(..., schedule=optim.linear_schedule(peak, steps, warmup))"
HALF = 'belongs to the model: GPT2(..., dtype="float16"), and fit(..., loss_scale=LossScale())'
EPOCHS = "is not counted here: fit(..., steps=epochs * len(batches))"
RATE = "belongs to the optimizer: AdamW(..., lr=...)"

REMEDIES = {  # foreign name -> the rest of the sentence, where the callee has no counterpart
    "use_dora": 'is a method of its own here: methods.apply(model, "dora", ...)',
    "use_rslora": 'is a method of its own here: methods.apply(model, "rslora", ...)',
    "lr": RATE, "learning_rate": RATE,
    "weight_decay": "belongs to AdamW: AdamW(..., weight_decay=...)",
    "momentum": "belongs to SGD: SGD(..., momentum=...); Adam has betas=(0.9, 0.999)",
    "warmup": SCHEDULE, "warmup_steps": SCHEDULE, "num_warmup_steps": SCHEDULE,
    "warmup_ratio": SCHEDULE,
    "epochs": EPOCHS, "num_epochs": EPOCHS, "n_epochs": EPOCHS, "num_train_epochs": EPOCHS,
    "max_epochs": EPOCHS,
    "fp16": HALF, "mixed_precision": HALF,
    "gradient_checkpointing": "belongs to the model: model.recompute = True",
    "batch_size": "belongs to the batches: data.Windows(ids, batch, tokens)",
    "seed": "is given where numbers are drawn: GPT2(..., rng=0), attach(..., rng=0)",
    "device": 'is one setting for all arrays: minilora.use("cupy")',
    "max_length": "counts the prompt too: n_tokens counts new tokens only",
    "do_sample": "is decided by the temperature: temperature=0 takes the likeliest token",
    "task_type": "is not needed: the model decides the task",
    "inference_mode": "is not needed: load(..., trainable=False) is the default",
    "fan_in_fan_out": "is not needed: every weight is (d_out, d_in)",
    "layers_to_transform": 'is part of the targets: targets=("blocks.0.attn.q", ...)',
}

VALUES = {  # name here -> start of a foreign value -> the rest of the sentence
    "init": {"pissa": 'is a method of its own here: methods.apply(model, "pissa", ...)'},
}


def refuse(
    who: str, word: str, names: Collection[str], notes: Mapping[str, str] = {}
) -> NoReturn:
    """Raise TypeError for the unknown keyword `word` of `who`, which accepts `names`.

    The message gives our name for it, or a remedy, or the closest name and all names.
    notes: foreign name -> what to add to the message.
    """
    ours = counterpart(word, names)
    if ours:
        raise TypeError(f"{who}: {word} is called {ours} here{notes.get(word, '')}")
    if word in REMEDIES:
        raise TypeError(f"{who}: {word} {REMEDIES[word]}")
    from difflib import get_close_matches

    near = get_close_matches(word, names, 1)
    hint = f"did you mean {near[0]}? It" if near else "it"
    takes = ", ".join(names) or "no arguments"
    raise TypeError(f"{who}: unknown argument {word!r}: {hint} takes {takes}")


def counterpart(word: str, names: Collection[str]) -> str | None:
    """Return the name here for a foreign `word`: the first that is among `names`; else None."""
    return next((ours for ours in OURS.get(word, ()) if ours in names), None)


def refuse_value(who: str, name: str, value: Any) -> None:
    """Raise TypeError if `value` names what is a method here, such as init="pissa"."""
    for start, remedy in VALUES.get(name, {}).items():
        if isinstance(value, str) and value.startswith(start):
            raise TypeError(f"{who}: {name}={value!r} {remedy}")


def our_words(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that an unknown keyword raises the TypeError of `refuse`.

    A function with **settings hands them on: there, only a word with a counterpart among the
    function's own names is refused.
    """
    own = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    names = [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in own)
    accepted = frozenset(names)
    path = function.__qualname__.rpartition("<locals>.")[2]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if not accepted.issuperset(kwargs):
            who = type(args[0]).__name__ if path.endswith(".__init__") and args else path
            for word in kwargs:
                if word not in accepted and (not passes_on or counterpart(word, names)):
                    refuse(who, word, names)
        return function(*args, **kwargs)

    return checked
