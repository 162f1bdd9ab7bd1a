"""adapter_config.json: the settings that minilora computes. All others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ...checks import describe

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."  # of all names of tensors
RESIDUAL = ("pissa", "olora", "corda", "lora_ga", "loftq")  # starts that also change the base
STARTS = (True, False, "gaussian", "orthogonal")  # others of init_lora_weights
OFF: dict[str, Any] = {  # what would change the function, as it is written where it is not used
    "alora_invocation_tokens": None, "arrow_config": None, "corda_config": None,
    "eva_config": None, "kasa_config": None, "layer_replication": None, "loftq_config": {},
    "lora_ga_config": None, "megatron_config": None, "monteclora_config": None,
    "target_parameters": None, "trainable_token_indices": None, "use_bdlora": None,
    "use_qalora": False, "velora_config": None,
}
NOTES: dict[str, Any] = {  # what says something, and changes nothing
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True,
    "megatron_core": "megatron.core", "peft_type": "LORA", "peft_version": "0.21.2",
    "qalora_group_size": 16, "revision": None,
}


@dataclass(frozen=True)
class PeftConfig:
    """The settings of a LoRA adapter under PEFT's names; a default is PEFT's own.

    Raises ValueError for a setting of another type, and for two that contradict each other.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"
    lora_bias: bool = False
    lora_dropout: float = 0.0
    fan_in_fan_out: bool = False
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    task_type: str | None = None
    ensure_weight_tying: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Return the settings in a file. Raises ValueError with every name that it refuses."""
        own = {f.name for f in fields(cls)}
        if "peft_type" not in given:
            raise ValueError("it has no 'peft_type', so it is not the config of an adapter")
        if given["peft_type"] != "LORA":
            raise ValueError(
                f"its peft_type is {describe(given['peft_type'])}, and only 'LORA' can be read"
            )
        if unknown := sorted(given.keys() - own - OFF.keys() - NOTES.keys()):
            raise ValueError(
                f"unknown settings {', '.join(unknown)}: they may change what the adapter "
                "computes; delete the lines that do not"
            )
        if used := [name for name in OFF if given.get(name) not in (None, False, {}, [])]:
            raise ValueError(f"it uses {', '.join(used)}, which minilora does not compute")
        patterns = "rank_pattern", "alpha_pattern"  # null there means none
        config = cls(**{name: value for name, value in given.items()
                        if name in own and not (name in patterns and value is None)})
        config.check()
        return config

    def check(self) -> None:
        """Raise ValueError for a setting of another type, or that contradicts another one."""
        for f in fields(self):
            value, kinds = getattr(self, f.name), KINDS[str(f.type)]
            if not any(kind(value) for kind in kinds):
                raise ValueError(f"{f.name} must be {f.type}, not {describe(value)}")
        if self.bias not in ("none", "lora_only", "all"):
            raise ValueError(f"bias must be none, lora_only or all, not {self.bias!r}")
        if self.target_modules is None:
            raise ValueError("it has no target_modules, so no layer has an adapter")
        start = self.init_lora_weights
        if isinstance(start, str) and start.startswith(RESIDUAL):
            raise ValueError(
                f"init_lora_weights is {start!r}: this adapter fits only the base that its start "
                "changed; write it as plain LoRA, in PEFT by save_pretrained(folder, "
                "path_initial_model_for_weight_conversion=...)"
            )
        if start not in STARTS:
            raise ValueError(f"it uses init_lora_weights={start!r}, which minilora does not read")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("layers_pattern has no effect without layers_to_transform")
        if isinstance(self.target_modules, str) and (
            self.layers_to_transform is not None or self.layers_pattern
        ):
            raise ValueError("layers_to_transform selects from a list of target_modules, not from "
                             f"{self.target_modules!r}")
        if self.use_dora and self.lora_bias:
            raise ValueError("use_dora and lora_bias exclude each other")

    def written(self, **notes: Any) -> dict[str, Any]:
        """Return the content of a file, with all keys that PEFT writes."""
        return OFF | NOTES | asdict(self) | notes


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(item: Any) -> Any:
    return lambda value: isinstance(value, list) and all(map(item, value))


def _mapping(item: Any) -> Any:
    return lambda value: isinstance(value, dict) and all(map(item, value.values()))


def _none(value: Any) -> bool:
    return value is None


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


KINDS = {  # a type, as it stands above -> what accepts a value of it
    "int": [_integer], "float": [_number], "bool": [_truth], "str": [_text],
    "str | None": [_text, _none], "bool | str": [_truth, _text],
    "str | list[str] | None": [_text, _list(_text), _none],
    "list[str] | None": [_list(_text), _none],
    "int | list[int] | None": [_integer, _list(_integer), _none],
    "dict[str, int]": [_mapping(_integer)], "dict[str, float]": [_mapping(_number)],
}
