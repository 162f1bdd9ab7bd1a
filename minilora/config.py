"""What a model is made with, and what an adapter is: sizes and settings, checked when given."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

from .checks import choice, real, told, whole

OURS = {  # what Hugging Face and PEFT call it -> what it is called here
    "n_ctx": "n_positions", "max_position_embeddings": "n_positions",
    "n_embd": "d_model", "hidden_size": "d_model",
    "n_layer": "n_layers", "num_layers": "n_layers", "num_hidden_layers": "n_layers",
    "n_head": "n_heads", "num_heads": "n_heads", "num_attention_heads": "n_heads",
    "n_inner": "d_ff", "intermediate_size": "d_ff",
    "layer_norm_eps": "eps", "type_vocab_size": "n_types", "pad_token_id": "padding_id",
    "hidden_dropout_prob": "dropout",
    "resid_pdrop": "dropout", "embd_pdrop": "dropout", "lora_dropout": "dropout",
    "rank": "r", "lora_r": "r", "lora_rank": "r", "lora_alpha": "alpha",
    "target_modules": "targets", "modules_to_save": "trainable", "init_lora_weights": "init",
}  # fmt: skip


class Config:
    """What both are: settings that may be misspelt, or given by another package's name for them."""

    counted: ClassVar[Mapping[str, str]] = {}  # other tools count it differently, too

    def __new__(cls, *values: Any, **settings: Any) -> Self:
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        for name in [name for name in settings if name not in names]:
            if OURS.get(name) in names:
                raise TypeError(
                    f"{cls.__name__}: {name} is called {OURS[name]} here"
                    + cls.counted.get(name, "")
                )
            from difflib import get_close_matches

            near = get_close_matches(name, names, 1)
            there = f"there are {', '.join(names)}" if names else "it has none"
            hint = f"did you mean {near[0]}?" if near else there
            raise TypeError(f"{cls.__name__}: there is no setting {name!r}: {hint}")
        return super().__new__(cls)

    def _set(self, **checked: Any) -> None:
        """What was given, as it is kept: ints, floats, tuples."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def _whole(self, least: int, *names: str) -> None:
        """These are whole numbers, `least` or more."""
        for name in names:
            self._set(**{name: whole(type(self).__name__, name, getattr(self, name), least)})


@dataclass(frozen=True)
class ModelConfig(Config):
    """The sizes that every transformer has."""

    vocab_size: int
    n_positions: int  # the longest input, in tokens
    d_model: int
    n_layers: int
    n_heads: int  # d_model is a multiple of it
    d_ff: int = 0  # 0: four times d_model
    dropout: float = 0.0  # of the embeddings and of what each half block adds

    def __post_init__(self) -> None:
        self._whole(1, "vocab_size", "n_positions", "d_model", "n_layers", "n_heads")
        self._whole(0, "d_ff")
        who = type(self).__name__
        self._set(dropout=real(who, "dropout", self.dropout, "[0, 1)"))
        if self.d_model % self.n_heads:
            raise ValueError(
                f"{who}: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}"
            )


@dataclass(frozen=True)
class GPT2Config(ModelConfig):
    """The sizes of a GPT-2; the defaults are GPT-2 small."""

    vocab_size: int = 50257
    n_positions: int = 1024
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12


@dataclass(frozen=True)
class EncoderConfig(ModelConfig):
    """What an encoder has beside: of the heads, and of the rows that are added to each token's."""

    eps: float = 1e-12  # of every layer norm
    n_types: int = 0  # token types, such as first and second sentence; 0: no table of them
    num_labels: int = 0  # 0: a head that fills masks in; else one that tells classes apart

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole(0, "n_types", "num_labels")
        self._set(eps=real(type(self).__name__, "eps", self.eps, "(0, inf)"))


@dataclass(frozen=True)
class BertConfig(EncoderConfig):
    """The sizes of a BERT; the defaults are BERT base, uncased (Devlin et al. 2019)."""

    vocab_size: int = 30522
    n_positions: int = 512
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    n_types: int = 2


@dataclass(frozen=True)
class RobertaConfig(EncoderConfig):
    """The sizes of a RoBERTa; the defaults are RoBERTa base (Liu et al. 2019).

    Its table of positions has padding_id + 1 rows more than n_positions: elsewhere 514 counts all.
    """

    counted: ClassVar[Mapping[str, str]] = {
        "max_position_embeddings": ", without the padding_id + 1 rows before the first: 512 for 514"
    }
    vocab_size: int = 50265
    n_positions: int = 512
    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    eps: float = 1e-5
    n_types: int = 1
    padding_id: int = 1  # the token that is no token; the first position is the row after this one

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole(0, "padding_id")
        if self.n_positions == 512 + self.padding_id + 1:
            warnings.warn(
                f"RobertaConfig: n_positions is {self.n_positions}: it counts tokens, without the "
                f"padding_id + 1 rows before the first, which max_position_embeddings has in it: "
                "RoBERTa's is 512",
                stacklevel=4,
            )


@dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """The sizes of a DeBERTa v2; the defaults are XXL (He et al. 2021), of 1.5 billion parameters.

    pos_att_type            which scores know the distance: "c2p", what a query wants, "p2c", what a
                            key offers; () is BERT's attention
    share_att_key           q and k read the table of distances too, instead of layers of its own
    position_buckets        distances that are told apart, each way; 0: all up to the largest
    max_relative_positions  the largest distance; 0: n_positions
    norm_rel_ebd            a layer norm over the table of distances
    position_biased_input   positions are added to the tokens as well, as in BERT
    conv_kernel_size        tokens that the convolution beside the first block sees; 0: none
    conv_act                what follows it, "tanh" or "gelu"
    z_steps                 how often the last block reads what it reads, the enhanced mask decoder;
                            0 and 1: once
    """

    vocab_size: int = 128100
    n_positions: int = 512
    d_model: int = 1536
    n_layers: int = 48
    n_heads: int = 24
    eps: float = 1e-7
    pos_att_type: Sequence[str] = ("c2p", "p2c")
    share_att_key: bool = True
    position_buckets: int = 256
    max_relative_positions: int = 0
    norm_rel_ebd: bool = True
    position_biased_input: bool = False
    conv_kernel_size: int = 3
    conv_act: str = "gelu"
    z_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        who, kinds = "DebertaConfig", self.pos_att_type
        self._whole(0, "position_buckets", "max_relative_positions", "conv_kernel_size", "z_steps")
        for name in ("share_att_key", "norm_rel_ebd", "position_biased_input"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{who}: {name} is True or False, not {told(value)}")
        if not isinstance(kinds, list | tuple) or not all(kind in ("c2p", "p2c") for kind in kinds):
            raise ValueError(f'{who}: pos_att_type is some of ("c2p", "p2c"), not {told(kinds)}')
        self._set(pos_att_type=tuple(sorted(set(kinds))))
        choice(who, "conv_act", self.conv_act, ("tanh", "gelu"))
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"{who}: conv_kernel_size {self.conv_kernel_size} is even: an odd one has a middle"
            )
        most = self.most
        if self.position_buckets and not 1 < self.position_buckets < 2 * (most - 1):
            raise ValueError(
                f"{who}: position_buckets {self.position_buckets} is not from 2 to "
                f"{2 * most - 3}, for distances up to {most - 1}: 0 tells each of them apart"
            )

    @property
    def most(self) -> int:
        """All distances are less, each way."""
        return self.max_relative_positions or self.n_positions

    @property
    def span(self) -> int:
        """Rows of the table of distances, each way."""
        return self.position_buckets or self.most


SHAPES: dict[str, ModelConfig] = {  # Radford et al. 2019; Brown et al. 2020, table 2.1
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": GPT2Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": GPT2Config(d_model=1600, n_layers=48, n_heads=25),
    "gpt3-175b": GPT2Config(n_positions=2048, d_model=12288, n_layers=96, n_heads=96),
    "bert-base": BertConfig(),
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(d_model=1024, n_layers=24, n_heads=16),
    "deberta-v2-xxlarge": DebertaConfig(),
}


@dataclass(frozen=True)
class LoRAConfig(Config):
    """What to adapt and how. Patterns are a layer's name ("q"), a glob, or its whole path.
    targets        layers that get an adapter (§4.2: attention weights; the paper chose q and v)
    dropout        of the adapter's input, in training only; tables of rows (embeddings) have none
    init           of A: "gaussian", σ² = 1/k (§4.1 leaves σ open), or "kaiming", uniform
                   in ±1/√k, as the authors' code has it. B is 0. A table's A: σ² = 1/r.
    bias           "none", "lora" (the adapted layers' biases train too), "all" (every bias)
    trainable      more parameters to train whole, such as a task's head
    rank_pattern   pattern -> r, alpha_pattern: pattern -> alpha, where a layer differs
    """

    r: int = 8
    alpha: float = 8.0
    targets: Sequence[str] = ("q", "v")
    dropout: float = 0.0
    init: str = "gaussian"
    bias: str = "none"
    trainable: Sequence[str] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        who = "LoRAConfig"
        for name in ("targets", "trainable"):
            self._set(**{name: _patterns(name, getattr(self, name))})
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(held := getattr(self, name), Mapping):
                raise ValueError(
                    f'{who}: {name} is a mapping like {{"attn.q": 4}}, not {told(held)}'
                )
            _patterns(name, held)
        self._set(
            r=whole(who, "r", self.r, 1),
            alpha=_alpha("alpha", self.alpha),
            dropout=real(who, "dropout", self.dropout, "[0, 1)"),
            rank_pattern={
                at: whole(who, f"rank_pattern[{at!r}]", r, 1) for at, r in self.rank_pattern.items()
            },
            alpha_pattern={
                at: _alpha(f"alpha_pattern[{at!r}]", alpha)
                for at, alpha in self.alpha_pattern.items()
            },
        )
        for name, known in (("init", ("gaussian", "kaiming")), ("bias", ("none", "lora", "all"))):
            choice(who, name, getattr(self, name), known)


def _patterns(name: str, given: Any) -> tuple[str, ...]:
    """The patterns that were given, one alone or several."""
    held = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for pattern in held:
        if not isinstance(pattern, str):
            raise ValueError(
                f'LoRAConfig: {name} takes names or patterns such as "q" and "attn.*", '
                f"not {told(pattern)}"
            )
    return held


def _alpha(name: str, given: Any) -> float:
    alpha = real("LoRAConfig", name, given)
    if alpha == 0:
        raise ValueError(
            f"LoRAConfig: {name} must not be 0: the adapter would change nothing, and learn nothing"
        )
    if alpha < 0:
        warnings.warn(
            f"LoRAConfig: {name} is {alpha:g}: a negative one turns the update around, which is "
            "hardly meant",
            stacklevel=4,
        )
    return alpha
