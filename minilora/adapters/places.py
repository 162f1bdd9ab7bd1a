"""Where modules and parameters stand in a model: found by path, replaced by identity.

Paths are those of the base model: an adapted module stands at its base's path. What a thing is
decides, never its name, so a user's own attribute may be called `base`. One object that stands in
several places is replaced in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..nn import Embedding, LayerNorm, Linear, Module, Parameter
from .protocol import Adapted


def bare(module: Module) -> Any:
    """The module without the adapters around it."""
    return module.base if isinstance(module, Adapted) else module


def walk(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """(path, module) of the model and all below it; an adapted module comes with its adapters.

    A module that stands in two places comes twice.
    """
    yield path, module
    for name, child in bare(module).children():
        if isinstance(child, Module):
            yield from walk(child, f"{path}.{name}" if path else name)


def adapted(model: Module) -> dict[str, Adapted]:
    """The modules that have adapters, by path, each once."""
    found: dict[Adapted, str] = {}
    for path, module in walk(model):
        if isinstance(module, Adapted):
            found.setdefault(module, path)
    return {path: module for module, path in found.items()}


def adaptable(model: Module) -> dict[str, Any]:
    """The layers that can get an adapter of A and B, or have one, by path: Linear and Embedding."""
    return {path: m for path, m in walk(model) if path and isinstance(bare(m), Linear | Embedding)}


def parameters(module: Module, path: str = "") -> Iterator[tuple[str, Module, Parameter]]:
    """(name, its module, parameter) of all parameters but the adapters', those in use now.

    In order of assignment. A parameter that stands in two places comes twice.
    """
    for name, child in bare(module).children():
        at = f"{path}.{name}" if path else name
        if isinstance(child, Parameter):
            yield at, bare(module), child
        else:
            yield from parameters(child, at)


def is_bias(name: str, module: Module, p: Parameter) -> bool:
    """Is it a vector that is added? It has one axis, and is not the gain of a norm."""
    return len(p.shape) == 1 and not (isinstance(module, LayerNorm) and name.endswith(".g"))


def swap(model: Module, new: Mapping[int, Module | Parameter]) -> None:
    """Replace modules and parameters wherever they stand in the model: new is id(old) -> new."""
    seen: set[int] = set()

    def enter(module: Module) -> Module:
        if id(module) not in seen:
            seen.add(id(module))
            attributes = vars(module)
            for name, value in list(attributes.items()):
                if isinstance(module, Adapted) and name == "base":
                    enter(value)  # what an adapter stands around stays there
                elif (other := visit(value)) is not value:
                    attributes[name] = other
        return module

    def visit(value: Any) -> Any:
        if isinstance(value, Parameter):
            return new.get(id(value), value)
        if isinstance(value, Module):
            return enter(new.get(id(value), value))  # type: ignore[arg-type]
        if isinstance(value, tuple):
            items = [visit(item) for item in value]
            same = all(a is b for a, b in zip(items, value))
            return value if same else getattr(value, "_make", tuple)(items)
        if isinstance(value, list | dict):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                if (other := visit(value[key])) is not value[key]:
                    value[key] = other
        return value

    if new:
        enter(model)
