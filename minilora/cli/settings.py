"""The methods' settings as options: what several commands share that train or plan a method."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from ..adapters import files
from ..files import checkpoint
from ..methods import METHODS, Method
from .parser import OneOf, Parser, above_0, below_1, blocks, either, integer, some_names

READERS: dict[str, tuple[Any, str]] = {  # a method's field -> its reader, and its help
    "r": (integer(1), "rank; for adapter-*: width of the bottleneck"),
    "alpha": (above_0, "scale of the update ΔW = (alpha / r) B A"),
    "targets": (some_names, "layers that get an adapter: names or globs, separated by commas"),
    "dropout": (below_1, "dropout rate of the adapters' input"),
    "bias": (OneOf("none", "lora", "all"), "which biases are trained"),
    "layers": (blocks, "for adapter-d: blocks that get an adapter, such as 6,7 (the upper half)"),
    "lp": (integer(0), "for methods with *pre*: trained tokens before the prompt"),
    "li": (integer(0), "for methods with *pre*: trained tokens after the prompt"),
}
DEFAULTS = {  # method -> its settings, with their defaults
    name: {field.name: field.default for field in fields(kind) if field.name in READERS}  # type: ignore[arg-type]
    for name, kind in METHODS.items()
}


def having(setting: str) -> list[str]:
    """Return the methods with this setting."""
    return [method for method, defaults in DEFAULTS.items() if setting in defaults]


def add_to(to: Parser, help: str) -> None:
    """Add --method and an option for each setting. One that is not given is None."""
    help = f"{help}; one of {', '.join(METHODS)} (lora)"
    to.option("--method", read=OneOf(*METHODS, metavar="NAME"), help=help)
    for name, (read, help) in READERS.items():
        to.option(f"--{name}", read=read, help=help, default=DEFAULTS[having(name)[0]][name])
    to.set_defaults(**dict.fromkeys(READERS))


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that are given, by name."""
    return {name: value for name in READERS if (value := getattr(args, name)) is not None}


def method(args: argparse.Namespace, **more: Any) -> Method:
    """Return the method with its settings. ValueError for a setting that it does not have.

    more: settings that have no option, for the methods that have them.
    """
    name, settings = args.method or "lora", given(args)
    own, kind = DEFAULTS[name], METHODS[name]
    if unknown := [setting for setting in settings if setting not in own]:
        has = f"{name} has --{', --'.join(own)}" if own else f"{name} has no settings"
        raise ValueError(f"--{unknown[0]} is for {either(having(unknown[0]))}: {has}")
    every = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**settings, **{name: value for name, value in more.items() if name in every})


def taken(args: argparse.Namespace) -> int:
    """Return the number of positions that the trained tokens of the method, or adapter, take."""
    if not args.adapter:
        chosen: Any = method(args)
        return getattr(chosen, "lp", 0) + getattr(chosen, "li", 0)
    with checkpoint.opened(args.adapter, *files.KINDS) as file:
        own = file.meta.get("settings", {})
    return int(own.get("lp", 0)) + int(own.get("li", 0)) if isinstance(own, dict) else 0
